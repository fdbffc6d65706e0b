"""The workflow: what it plans, what a kill costs, what a failed run leaves. Notebooks that only
pretend stand for the runs, but for one that is real and tiny.
"""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import ROOT
from filelock import FileLock

pytest.importorskip("snakemake", reason="the workflow needs Python 3.11")
from snakemake.utils import available_cpu_count  # noqa: E402

# what `cores: all` means: on a cluster or in a container it may be less than the machine has
CORES = available_cpu_count()
SYSTEMS = yaml.safe_load((ROOT / "experiments/systems.yaml").read_text(encoding="utf-8"))
STAGES = {
    "pretrain": "03_pretrain", "finetune": "04_finetune", "evaluate": "05_evaluate",
    "analyse": "06_analyse"}
MAIN = ["baseline", "s2dm_pos", "s2dm_sp", "s2dm_single_pos", "s2dm_single_sp", "s2dm_sp-untrained"]
# counts itself, leaves a checkpoint; holds or fails where the test says so
STUB = """
import json, os, time
from pathlib import Path
runs = Path(os.environ["S2DM_RUNS"])
parts = [variant, "" if edition == "paper" else edition, control, head]
system = "-".join(part for part in parts if part)
folder = runs / STAGE / model / system / f"seed{seed}"
threads = os.environ["OMP_NUM_THREADS"]
with (runs / "log.txt").open("a") as log:
    log.write(f"{STAGE} {system} {seed} threads={threads}\\n")
(folder / "checkpoint").mkdir(parents=True, exist_ok=True)
if f"{STAGE}/{system}" in os.environ.get("HOLD", ""): time.sleep(600)
if f"{STAGE}/{system}" in os.environ.get("FAIL", ""): raise ValueError("what went wrong")
found = dict(figures=os.environ["S2DM_FIGURES"], gpu=os.environ.get("CUDA_VISIBLE_DEVICES"))
(folder / "metrics.json").write_text(json.dumps(found))
"""
REFERENCE = """
import os
from pathlib import Path
folder = Path(os.environ["S2DM_RUNS"]) / "reference" / model / language / f"seed{seed}"
folder.mkdir(parents=True, exist_ok=True)
(folder / f"predictions.synthetic.{language}.json").write_text("{}")
"""
REPORT = """
import os
from pathlib import Path
folder = Path(os.environ["S2DM_FIGURES"]) / profile
folder.mkdir(parents=True, exist_ok=True)
records = Path(os.environ["S2DM_RUNS"]).glob("*/*/*/*/metrics.json")
(folder / "report.html").write_text("\\n".join(sorted(map(str, records))))
"""


def notebook(parameters, code):
    cells = [
        nbformat.v4.new_code_cell(parameters, metadata=dict(tags=["parameters"])),
        nbformat.v4.new_code_cell(code)]
    return nbformat.v4.new_notebook(
        cells=cells,
        metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python")))


@pytest.fixture
def place(tmp_path):
    "A folder with the workflow and notebooks that only pretend."
    folder = tmp_path / "clone"
    (folder / "nbs").mkdir(parents=True)
    for part in ("workflow", "experiments"): shutil.copytree(ROOT / part, folder / part)
    for stage, name in STAGES.items():
        parameters = [f'STAGE = "{stage}"', 'edition = "paper"', "seed = 0"]
        parameters += [f'{p} = ""' for p in ("model", "variant", "control", "head")]
        nbformat.write(notebook("\n".join(parameters), STUB), folder / f"nbs/{name}.ipynb")
    nbformat.write(notebook('profile = ""', REPORT), folder / "nbs/07_report.ipynb")
    given = 'model = ""\nlanguage = ""\nseed = 0'
    nbformat.write(notebook(given, REFERENCE), folder / "nbs/06_reference.ipynb")
    return folder


STARTED = []


@pytest.fixture(autouse=True)
def nothing_goes_on():
    "Whatever a test started ends with it."
    yield
    while STARTED:
        try: os.killpg(STARTED.pop().pid, signal.SIGKILL)
        except ProcessLookupError: pass


def start(place, *more, **env):
    STARTED.append(subprocess.Popen(
        [sys.executable, "-m", "snakemake", *more], cwd=place, env={**os.environ, **env},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True))
    return STARTED[-1]


def snakemake(place, *more, **env):
    process = start(place, *more, **env)
    out = process.communicate()[0]
    return process.returncode, out


def counts(out): # job -> how many, from the plan
    return {
        name: int(n)
        for name, n in re.findall(r"^(\w+) +(\d+)$", out[out.rindex("Job stats:"):], re.M)}


def started(tmp_path):
    return [
        line.rpartition(" ")[0] for line in (tmp_path / "runs/log.txt").read_text().splitlines()]


def test_systems_are_all_that_the_paper_compares_and_more():
    from s2dm.model import ABLATIONS
    assert set(ABLATIONS) | set(MAIN) < set(SYSTEMS)
    assert {s.get("edition") for s in SYSTEMS.values()} == {None, "paper", "released"}
    assert {s.get("head") for s in SYSTEMS.values()} == {None, "semantic", "concat"}
    assert {s.get("control") for s in SYSTEMS.values()} == {None, "untrained", "trainable"}
    for profile in ("small", "e5", "real", "paper"):
        found = yaml.safe_load((ROOT / f"experiments/{profile}.yaml").read_text(encoding="utf-8"))
        assert found["edition"] == "refined"
        assert all(
            found[t]["systems"] == "all" or set(found[t]["systems"]) <= set(SYSTEMS)
            for t in ("reproduce", "full"))


PLANS = {
    "snakemake --dry-run": ("small, reproduce: 22 runs, 0 of them done", dict(
        pretrain=4, finetune=6, evaluate=6, reference=2, analyse=6, report_reproduce=1, reproduce=1,
        total=26)),
    "snakemake --profile workflow/local --config profile=real": ("real, reproduce: 42 runs", dict(
        data=1, encoder=1, pretrain=6, finetune=12, evaluate=12, analyse=12, report_reproduce=1,
        reproduce=1, total=46)),
    "snakemake --profile workflow/gpu --config profile=paper models=mbert -- full": (
        "paper, full: 430 runs",
        dict(
            data=1, pretrain=85, finetune=115, evaluate=115, analyse=115, report_full=1, full=1,
            total=433)),
    "snakemake --profile workflow/slurm --config profile=paper --jobs 32 --dry-run": (
        "paper, reproduce: 28 runs",
        dict(
            data=1, pretrain=4, finetune=8, evaluate=8, analyse=8, report_reproduce=1, reproduce=1,
            total=31)),
    "snakemake --executor slurm --jobs 32 "
    "--config systems=baseline,s2dm_sp,s2dm_sp-untrained seeds=2": (
        "small, reproduce: 20 runs",
        dict(
            pretrain=2, finetune=6, evaluate=6, reference=4, analyse=6, report_reproduce=1,
            reproduce=1, total=26)),
    "snakemake --profile workflow/gpu --config profile=paper --dry-run": (
        "paper, reproduce: 28 runs",
        dict(
            data=1, pretrain=4, finetune=8, evaluate=8, analyse=8, report_reproduce=1, reproduce=1,
            total=31)),
    "snakemake --profile workflow/gpu --config profile=paper models=mbert": (
        "paper, reproduce: 14 runs",
        dict(
            data=1, pretrain=2, finetune=4, evaluate=4, analyse=4, report_reproduce=1, reproduce=1,
            total=17)),
    "snakemake --profile workflow/gpu --config profile=paper models=xlm100": (
        "paper, reproduce: 14 runs",
        dict(
            data=1, pretrain=2, finetune=4, evaluate=4, analyse=4, report_reproduce=1, reproduce=1,
            total=17)),
    "snakemake --profile workflow/gpu --config profile=paper -- full": (
        "paper, full: 860 runs",
        dict(
            data=1, pretrain=170, finetune=230, evaluate=230, analyse=230, report_full=1, full=1,
            total=863)),
    "snakemake --profile workflow/gpu --config profile=real models=real-m": (
        "real, reproduce: 42 runs",
        dict(
            data=1, encoder=1, pretrain=6, finetune=12, evaluate=12, analyse=12, report_reproduce=1,
            reproduce=1, total=46)),
    "snakemake --profile workflow/local --config profile=paper --until data": (
        "paper, reproduce: 28 runs", dict(data=1, total=1)),
    "snakemake --profile workflow/slurm --config profile=paper --jobs 32 "
    "--default-resources slurm_account=me slurm_partition=gpu": (
        "paper, reproduce: 28 runs",
        dict(
            data=1, pretrain=4, finetune=8, evaluate=8, analyse=8, report_reproduce=1, reproduce=1,
            total=31)),
    "snakemake --profile workflow/gpu "
    "--config profile=paper models=/encoders/mine systems=baseline,s2dm_sp": (
        "paper, reproduce: 7 runs",
        dict(
            data=1, pretrain=1, finetune=2, evaluate=2, analyse=2, report_reproduce=1, reproduce=1,
            total=10))}


def some_slow(cases, quick): # a kind of case once in `make test`, all of them in `make test-all`
    return [case if i in quick else pytest.param(case, marks=pytest.mark.slow)
            for i, case in enumerate(cases)]


@pytest.mark.parametrize("command", some_slow(PLANS, quick=(0, 2, 4, 12)))
def test_a_dry_run_prints_the_plan(place, command):
    "Of each command in docs/workflow.md and docs/gpu.md, and one more."
    runs, plan = PLANS[command]
    code, out = snakemake(place, "--dry-run", "--printshellcmds", *command.split()[1:])
    assert code == 0 and counts(out) == plan and runs in out, out[-3000:]
    # the embedded profile wants no GPU
    assert ("--no-gpu" in out) == ("profile=" not in command)
    # runs go where the notebooks, given their parameters, leave them
    if "mbert -- full" in command or "models=/" in command:
        from s2dm.finetune import FinetuneConfig
        from s2dm.pretrain import PretrainConfig
        for number, kind in (("03_pretrain", PretrainConfig), ("04_finetune", FinetuneConfig)):
            lines = re.findall(rf"nbs/{number}.ipynb (\S+) (-p .*)", out)
            assert len(lines) == plan[number[3:]] and len({file for file, _ in lines}) == len(lines)
            for file, given in lines:
                assert (kind(**dict(re.findall(r"-p (\S+) (\S+)", given))).folder(number[3:])
                        == Path(file).parent)


def test_e5_goes_seed_by_seed_and_a_seed_that_is_not_analysed_is_read_with(place):
    "Each round of `make e5` does all of its seeds but the report; two of the seeds are analysed."
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (given,) = re.findall(r"--config (profile=e5 seeds=\$\$k .*? -- reproduce)", makefile)
    code, out = snakemake(
        place, "--dry-run", "--config", *given.replace("$$k", "4").split())
    assert code == 0 and counts(out) == dict(
        data=1, pretrain=8, finetune=16, evaluate=16, analyse=8, total=49)
    compared = [makefile.index(f"experiments/{name}.py") for name in ("primary", "mechanism")]
    assert makefile.index(given) < min(compared)
    assert max(compared) < makefile.index("--config profile=e5 --forcerun report_reproduce")


def test_a_restored_run_is_not_made_again_after_the_corpora(place, tmp_path):
    "Restored on a new machine, a chain of runs is there before the corpora are."
    for stage in ("finetune", "evaluate", "analyse"):
        record = tmp_path / stage / "e5/baseline/seed0/metrics.json"
        record.parent.mkdir(parents=True)
        record.write_text("{}", encoding="utf-8")
    code, out = snakemake(
        place, "--dry-run", "--config", "profile=e5", "seeds=2", "--omit-from", "report_reproduce",
        "--", "reproduce", S2DM_RUNS=str(tmp_path))
    assert code == 0 and counts(out) == dict(
        data=1, pretrain=4, finetune=7, evaluate=7, analyse=7, total=26)


def test_commands_of_the_readme():
    names = "README.md", "docs/workflow.md"
    pages = [(ROOT / name).read_text(encoding="utf-8") for name in names]
    found = re.findall(r"^(?:snakemake|make reproduce).*", "\n".join(pages), re.M)
    assert set(found) == {"make reproduce", "make reproduce-full SEEDS=3", *list(PLANS)[:4]}
    page = re.findall(r"^snakemake.*", (ROOT / "docs/gpu.md").read_text(encoding="utf-8"), re.M)
    assert page == list(PLANS)[5:]
    plan = subprocess.run(
        "make --dry-run reproduce reproduce-full SEEDS=3", shell=True, cwd=ROOT,
        capture_output=True, text=True).stdout
    assert "snakemake --cores 2 reproduce" in plan
    assert "--config profile=encoders seeds=$k -- reproduce" in plan and "seq 3" in plan
    assert "runs/figures/small/report.html" in plan.replace(os.environ["S2DM_RUNS"], "runs")


@pytest.mark.parametrize("more, says", [
    ("seeds=abc", "seeds=abc is not possible"),
    ("seeds=0", "seeds=0 is not possible"),
    ("profile=smal", "choose from: e5, e5-layer4, encoders, paper, real, small"),
    ("systems=s2dm", "system 's2dm' is not known; choose from: baseline, s2dm_pos")])
def test_what_is_not_known_is_named(place, more, says):
    code, out = snakemake(place, "--dry-run", "--config", more)
    assert code == 1 and says in out


@pytest.mark.parametrize(
    "how, side_by_side",
    [(["--cores", "1"], 1), (["--cores", "3"], 3), (["--profile", "workflow/local"], CORES), (
        ["--profile", "workflow/gpu"], CORES)])
def test_as_many_runs_side_by_side_as_asked_for(place, how, side_by_side):
    """At first seven runs need nothing: the baseline's fine-tuning, pre-training four times, and
    two monolingual readers."""
    for line in start(place, *how).stdout:
        if found := re.match(r"Execute (\d+) jobs", line): break
    assert found and int(found[1]) == min(7, side_by_side)


@pytest.mark.timeout(900) # on a busy machine
def test_failed_and_killed_runs(place, tmp_path):
    """One run fails, which names its notebook and leaves it; another is killed, with the whole
    call. The next call repeats nothing that was finished."""
    two, runs = ["--config", "systems=baseline,s2dm_sp"], tmp_path / "runs"
    process = start(
        place, "--cores", "2", *two, FAIL="evaluate/baseline", HOLD="finetune/s2dm_sp-refined")
    failed = runs / "evaluate/small/baseline/seed0"
    held = runs / "finetune/small/s2dm_sp-refined/seed0/checkpoint"
    for _ in range(1500):
        if ((failed / "run.log").exists() and "what went wrong" in (failed / "run.log").read_text()
            and held.exists()):
            break
        time.sleep(.1)
    time.sleep(3) # for Snakemake to notice
    code, out = snakemake(place, "--cores", "2", *two)
    assert code == 1 and "another call of snakemake works in" in out
    os.killpg(process.pid, signal.SIGKILL)
    out = process.communicate()[0]
    assert ("ValueError: what went wrong" in out
            and "FAILED: nbs/05_evaluate.ipynb -p model small -p variant baseline -p seed 0" in out
            and f"in {failed}/run.ipynb" in out), out
    outputs = [
        o for cell in nbformat.read(failed / "run.ipynb", 4).cells
        if cell.cell_type == "code"
        for o in cell.outputs]
    assert any(o.output_type == "error" and o.evalue == "what went wrong" for o in outputs)
    assert (failed / "checkpoint").is_dir()
    before = started(tmp_path)
    assert sorted(before) == sorted(
        ["finetune baseline 0", "evaluate baseline 0", "pretrain s2dm_sp-refined 0",
         "finetune s2dm_sp-refined 0"])

    code, out = snakemake(place, "--cores", "2", *two)
    assert code == 0, out[-3000:]
    after = started(tmp_path)[len(before):]
    assert sorted(after) == sorted(
        ["evaluate baseline 0", "analyse baseline 0", "finetune s2dm_sp-refined 0",
         "evaluate s2dm_sp-refined 0", "analyse s2dm_sp-refined 0"])
    references = runs / "reference/small" # that both are compared with
    assert {p.name for p in references.iterdir()} == {"svo_prenominal", "sov_case"}
    assert len((runs / "figures/small/report.html").read_text().splitlines()) == 7
    metrics = json.loads((runs / "analyse/small/s2dm_sp-refined/seed0/metrics.json").read_text())
    assert (metrics
            == dict(figures=str(runs / "analyse/small/s2dm_sp-refined/seed0/figures"), gpu=""))
    assert {line.split("=")[1] for line in (runs / "log.txt").read_text().splitlines()} == {"1"}

    (place / "nbs/04_finetune.ipynb").touch() # neither this nor another call repeats anything
    code, out = snakemake(place, "--cores", "2", *two)
    assert code == 0 and "Nothing to be done" in out and "7 runs, 7 of them done" in out
    # what is thrown away is made again, with all that stands on it
    shutil.rmtree(runs / "finetune/small/s2dm_sp-refined")
    code, out = snakemake(place, "--dry-run", *two)
    assert code == 0
    assert (counts(out)
            == dict(finetune=1, evaluate=1, analyse=1, report_reproduce=1, reproduce=1, total=5))


def test_committed_records_are_runs_that_are_not_repeated(place, tmp_path):
    """As docs/workflow.md says: unpacked into runs/. All systems are in them with the same seeds,
    and nothing is left to do but the report."""
    page = (ROOT / "docs/workflow.md").read_text(encoding="utf-8")
    command = re.search(r"^tar -xJf .*", page, re.M)[0]
    found = {}
    (tmp_path / "runs").mkdir()
    subprocess.run(command.split()[:-1] + [str(tmp_path / "runs")], cwd=ROOT, check=True)
    for path in (tmp_path / "runs").glob("evaluate/small/*/seed*/metrics.json"):
        found.setdefault(path.parent.parent.name, set()).add(path.parent.name)
    seeds = len(found["baseline"])
    assert all(them == {f"seed{k}" for k in range(seeds)} for them in found.values())
    code, out = snakemake(place, "--dry-run", "--config", f"seeds={seeds}", "--", "full")
    assert (code == 0 and counts(out) == dict(report_full=1, full=1, total=2)
            and len(found) == len(SYSTEMS)), out[-3000:]


@pytest.mark.timeout(900)
def test_the_embedded_job_with_few_steps(tmp_path):
    """The real notebooks, offline, for one system; killed while its reader is trained, and taken up
    again."""
    place, runs = tmp_path / "clone", tmp_path / "runs"
    for part in ("nbs", "s2dm", "workflow", "experiments", "data/paper"):
        shutil.copytree(
            ROOT / part, place / part,
            ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    shutil.copy(ROOT / "settings.ini", place)
    profile = yaml.safe_load((place / "experiments/small.yaml").read_text(encoding="utf-8"))
    profile["parameters"] = dict(
        pretrain=dict(max_steps=4), finetune=dict(max_steps=4),
        evaluate=dict(languages="svo_nadj", samples=200), analyse=dict(analyses="geometry"))
    profile["reproduce"]["systems"] = ["s2dm_sp"]
    del profile["references"]
    (place / "experiments/small.yaml").write_text(yaml.safe_dump(profile), encoding="utf-8")
    offline = dict(
        PYTHONPATH=str(place), http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9")
    process = start(place, "--cores", "2", **offline)
    for _ in range(2500):
        if ((runs / "finetune/small/s2dm_sp-refined/seed0/config.json").exists()
            or process.poll() is not None):
            break
        time.sleep(.1)
    os.killpg(process.pid, signal.SIGKILL)
    out = process.communicate()[0]
    before = {path: path.read_bytes() for path in runs.glob("*/*/*/*/metrics.json")}
    assert (runs / "pretrain/small/s2dm_sp-refined/seed0/metrics.json" in before
            and len(before) == 1), out[-3000:]
    code, out = snakemake(place, "--cores", "2", **offline)
    assert code == 0, out[-3000:]
    assert all(path.read_bytes() == content for path, content in before.items())
    assert len(list(runs.glob("*/*/*/*/metrics.json"))) == 4
    assert "S2DM" in (runs / "figures/small/report.html").read_text(encoding="utf-8")
    assert not (place / "figures").exists()


@pytest.mark.parametrize("models", [
    "x;touch pwned;y", "$(touch pwned)", "a b  c", "it's", "`touch pwned`"])
def test_names_are_words_and_never_commands(place, models, tmp_path):
    "Whatever a shell would make of them, in an encoder's name and in the folder of the runs."
    runs = tmp_path / "r$(touch pwned) ; touch pwned"
    more = ["systems=baseline", f"models={models}"]
    code, out = snakemake(
        place, "--cores", "2", "--until", "finetune", "--config", *more, S2DM_RUNS=str(runs))
    assert code == 0, out[-3000:]
    assert not list(tmp_path.rglob("pwned"))
    assert (runs / f"finetune/{models}/baseline/seed0/run.ipynb").is_file()


@pytest.mark.parametrize("models, says", [
    ("..", "has no name of its own"), ("a/b,a--b", "have one folder's name")])
def test_names_that_leave_their_folder_or_share_it_are_refused(place, models, says):
    code, out = snakemake(place, "--dry-run", "--config", f"models={models}")
    assert code == 1 and says in out


@pytest.mark.parametrize("there, told, trained", [
    ((), (), "auto"), (("float32", None), (), "float32"), (("float32",), ("bfloat16",), "bfloat16"),
    (("float32", "bfloat16"), (), "auto")])
def test_all_systems_of_a_seed_are_trained_in_one_precision(tmp_path, there, told, trained):
    "Whatever the machine; a run that is told another precision takes that."
    for number, precision in enumerate(there):
        record = tmp_path / f"finetune/e5/system{number}/seed0/metrics.json"
        record.parent.mkdir(parents=True)
        record.write_text(json.dumps(dict(precision=precision) if precision else {}))
    given = "precision = 'auto'\nfile = ''"
    code = "from pathlib import Path\nPath(file).write_text(precision)"
    nbformat.write(notebook(given, code), tmp_path / "04_finetune.ipynb")
    said = [word for one in told for word in ("-p", "precision", one)]
    run = subprocess.run(
        [sys.executable, ROOT / "workflow/run.py", "--log", tmp_path / "run.log",
         "--alike", tmp_path / "*/e5/*/seed0/metrics.json", tmp_path / "04_finetune.ipynb",
         tmp_path / "run.ipynb", "-p", "file", tmp_path / "said", *said],
        capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "said").read_text() == trained
    log = (tmp_path / "run.log").read_text()
    assert ("are of 2 precisions: ['bfloat16', 'float32']" in log) == (len({*there}) == 2
                                                                     and None not in there)


def test_the_log_of_a_run_that_still_works_is_left_to_it(tmp_path):
    "The next call of the same run waits, and begins the log when it is its own."
    log = tmp_path / "run.log"
    nbformat.write(notebook("file = ''", "print('the second')"), tmp_path / "one.ipynb")
    command = [sys.executable, ROOT / "workflow/run.py", "--log", log, tmp_path / "one.ipynb",
               tmp_path / "run.ipynb", "-p", "file", "any"]
    with FileLock(f"{log}.lock"):
        log.write_text("the first")
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as second:
            with pytest.raises(subprocess.TimeoutExpired): second.wait(4)
            assert log.read_text() == "the first"
            second.kill()
    subprocess.run(command, check=True)
    assert "the second" in log.read_text() and "the first" not in log.read_text()


def test_the_workflow_asks_for_one_precision_for_each_seed(place):
    code, out = snakemake(
        place, "--dry-run", "--printshellcmds", "--config", "profile=e5", "seeds=1",
        "systems=s2dm_sp", S2DM_RUNS="/r")
    assert code == 0, out[-3000:]
    pattern = r"/r/\*/e5/\*/seed0/metrics.json"
    lines = [line for line in out.splitlines() if "workflow/run.py" in line]
    assert len(lines) > 4
    for line in lines:
        stages = ("nbs/03_pretrain", "nbs/04_finetune", "nbs/05_evaluate")
        assert (pattern in line) == any(stage in line for stage in stages)


def test_a_cut_encoder_has_folders_of_its_own(place):
    from s2dm.finetune import FinetuneConfig
    more = ["profile=e5-layer4", "systems=baseline,s2dm_sp", "seeds=1"]
    code, out = snakemake(place, "--dry-run", "--printshellcmds", "--config", *more)
    assert code == 0, out[-3000:]
    lines = re.findall(r"nbs/04_finetune.ipynb (\S+) (-p .*)", out)
    assert len(lines) == 2
    for file, given in lines:
        config = FinetuneConfig(**dict(re.findall(r"-p (\S+) (\S+)", given)))
        assert config.layer == 4 and "finetune/e5-layer4/" in file
        assert config.folder("finetune") == Path(file).parent
    assert "-p models e5-layer4" in out
