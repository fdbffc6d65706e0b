"""What users type: every command and example of the README and of the pages on runs and workflow,
the runs through papermill, and the errors they give.
"""
import copy
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import MIRROR, ROOT

from s2dm.toy import save_toy_questions

PAGES = ("README.md", "docs/runs.md", "docs/workflow.md", "docs/index.md", "docs/language.md")
README = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
COMMANDS = list(dict.fromkeys(
    line for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.splitlines()))
EXAMPLES = list(dict.fromkeys(re.findall(r"```python\n(.*?)```", README, re.S)))
OFFLINE = dict(http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9")


def shell(command, **env):
    """Run a command in the repository as a user with an active environment would; results go to the
    test's own folders."""
    env = {
        **os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **env}
    return subprocess.run(
        command, shell=True, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280,
        executable="/bin/bash")


def papermill(notebook, parameters, tmp_path, **env):
    return shell(
        f"papermill nbs/{notebook}.ipynb {shlex.quote(str(tmp_path / 'run.ipynb'))} {parameters}",
        **env)


def test_every_command_of_the_readme_is_known_here():
    "A new command in the README fails this until a test below, or in test_workflow, executes it."
    assert COMMANDS == [
        "make reproduce", "make test", "make help", "make setup", "source .venv/bin/activate",
        'echo "สมชาย ใจดี เปิดร้านกาแฟที่เชียงใหม่เมื่อปี 2548" | s2dm answer "ร้านกาแฟเปิดเมื่อปีอะไร"',
        "papermill nbs/01_data.ipynb runs/01_data.ipynb -p corpora xquad,zh_sts",
        "papermill nbs/03_pretrain.ipynb runs/03_pretrain.ipynb -p variant s2dm_sp",
        "papermill nbs/04_finetune.ipynb runs/04_finetune.ipynb",
        "papermill nbs/05_evaluate.ipynb runs/05_evaluate.ipynb",
        'papermill nbs/05_evaluate.ipynb runs/mine.ipynb -p reader '
        'runs/finetune/small/s2dm_sp-refined/seed0/checkpoint -p datasets synthetic -p languages '
        '"svo_post,mine order=OVSX phrase=RGNAD adposition=after"',
        "papermill nbs/04_finetune.ipynb runs/e5.ipynb -p model e5 -p variant baseline",
        "papermill nbs/02_encoder.ipynb runs/02_encoder.ipynb -p name real-s",
        "papermill nbs/04_finetune.ipynb runs/04_finetune.ipynb -p model real-s",
        "papermill nbs/04_finetune.ipynb runs/mbert.ipynb -p model mbert",
        "make publish FROM=runs/figures/full/small TO=figures/small", "snakemake --dry-run",
        "make reproduce-full SEEDS=3", "snakemake --profile workflow/local --config profile=real",
        "snakemake --profile workflow/gpu --config profile=paper models=mbert -- full",
        "snakemake --profile workflow/slurm --config profile=paper --jobs 32 --dry-run",
        "papermill nbs/07_report.ipynb runs/07_report.ipynb -p runs figures/small/records.tar.xz "
        "-p out runs/figures/again",
        "tar -xJf figures/small/records.tar.xz -C runs"]


def test_make_help_lists_the_targets():
    out = shell("make help")
    assert out.returncode == 0
    assert all(
        f"make {t}" in out.stdout
        for t in ("help", "setup", "test", "reproduce", "reproduce-full", "encoder", "data",
                  "export", "docs", "lab", "lock", "clean"))


def test_make_setup_reuses_what_is_up_to_date_and_make_test_runs_everything():
    """`make test` is what runs this test; here its plan is read instead of starting it within
    itself."""
    if not (ROOT / ".venv/bin/python").exists():
        pytest.skip("not run from the environment that make sets up")
    assert "Nothing to be done for 'setup'" in shell("make --dry-run setup").stdout
    plan = shell("make --dry-run test").stdout
    assert all(words in plan for words in ("ruff check", "nbdev_test", "pytest"))
    assert "pip install" not in plan
    out = shell("source .venv/bin/activate && python -c 'import s2dm, sys; print(sys.prefix)'")
    assert out.stdout.strip() == str(ROOT / ".venv")


def test_make_lab_serves_the_checkout():
    "So that links from nbs/ to docs/, and pictures of figures/, are found."
    command = "make --no-print-directory --dry-run lab LAB_ARGS='--no-browser --port=8899'"
    plan = shell(command).stdout.splitlines()[-1]
    assert f'--ServerApp.root_dir="{ROOT}"' in plan and plan.endswith("--no-browser --port=8899")


def test_another_lock_file_means_another_environment(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    def plan():
        return subprocess.run(
            ["make", "--dry-run", "setup"], cwd=tmp_path, capture_output=True, text=True).stdout
    (tmp_path / "requirements.lock").write_text("one\n")
    stamp = re.search(r"touch (\S+)", plan()).group(1)
    (tmp_path / stamp).parent.mkdir()
    (tmp_path / stamp).touch()
    assert "Nothing to be done" in plan()
    (tmp_path / "requirements.lock").write_text("two\n")
    assert "venv --clear .venv" in plan() and stamp not in plan()


def test_an_old_python_is_named():
    out = shell("make --dry-run setup PYTHON=/bin/false")
    assert "sys.version_info >= (3, 10)" in out.stdout and "venv --clear" in out.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_of_the_readme(example, tmp_path, request):
    if "load_" in example: request.getfixturevalue("mirror_folder")
    if '"e5"' in example: request.getfixturevalue("with_e5")
    if "runs_dir" in example: pytest.skip("reads what runs leave: see test_from_text_to_answers")
    printed = re.search(re.escape(example) + r"```\n\n((?:    .*\n)+)", README)
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", example], cwd=ROOT,
        env={**os.environ, "S2DM_MIRROR": MIRROR}, capture_output=True, text=True, timeout=200)
    assert out.returncode == 0, out.stderr
    if printed: assert out.stdout.split() == printed.group(1).split()


def test_a_text_in_thai_is_asked(with_e5):
    out = shell(next(c for c in COMMANDS if "s2dm answer" in c), PYTHONPATH=str(ROOT), **OFFLINE)
    assert (out.returncode, out.stdout) == (0, "2548\n"), out.stderr


@pytest.mark.slow
def test_commands_of_the_page_on_languages(tmp_path, with_e5):
    page = (ROOT / "docs/language.md").read_text(encoding="utf-8")
    example = next(e for e in EXAMPLES if "Amina" in e)
    text = re.search(r'context = "(.*)"', example)[1]
    questions = re.search(r"^    \{.*\n(?:    .*\n)+", page, re.M)[0]
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    (tmp_path / "questions.json").write_text(questions, encoding="utf-8")
    ask, test = re.findall(r"^    (s2dm .*)", page, re.M)
    for command, says in ((ask, "Amina\n"), (test, r"(?s).*total +1\b.*")):
        out = shell(f"cd {tmp_path} && python -m {command}", PYTHONPATH=str(ROOT), **OFFLINE)
        assert out.returncode == 0, out.stderr
        assert re.fullmatch(says, out.stdout), out.stdout


@pytest.mark.slow
def test_make_data(tmp_path, mirror_folder):
    "The real corpora: tables, a figure and a record."
    out = shell("make data", S2DM_MIRROR=mirror_folder, **OFFLINE)
    assert out.returncode == 0, out.stderr[-3000:]
    figures = {p.name for p in (tmp_path / "figures").iterdir()}
    tables = ("treebanks", "pairs", "reading", "similarity")
    assert figures == {"data.png", "data.csv"} | {
        f"data_{table}.{kind}" for table in tables for kind in ("csv", "md", "tex")}
    metrics = json.loads((tmp_path / "runs/data/metrics.json").read_text())
    assert sum(row["pairs"] for row in metrics["pairs"]) == 26_915
    assert sum(row["questions"] for row in metrics["reading"] if row["corpus"] == "tydiqa") == 5077
    assert {row["corpus"] for row in metrics["missing"]} == {"squad", "mlqa", "qamr", "squadshifts"}
    for name in (
            "data_treebanks.md", "data_pairs.md", "data_reading.md", "data_similarity.md"):
        assert (
            (tmp_path / "figures" / name).read_text()
            == (ROOT / "figures" / name).read_text()), f"figures/{name} is not what the run makes"


@pytest.mark.slow
def test_a_run_on_some_corpora(tmp_path, mirror_folder):
    command = next(c for c in COMMANDS if "01_data" in c).replace(
        "runs/01_data.ipynb", str(tmp_path / "run.ipynb"))
    out = shell(command, S2DM_MIRROR=mirror_folder, **OFFLINE)
    assert out.returncode == 0, out.stderr[-3000:]
    assert (set(json.loads((tmp_path / "runs/data/metrics.json").read_text()))
            == {"reading", "similarity"})
    assert (json.loads((tmp_path / "runs/data/config.json").read_text())["parameters"]
            == {"corpora": ["xquad", "zh_sts"]})


@pytest.mark.slow
def test_a_run_without_network_mirror_or_data_says_what_is_missing(tmp_path):
    out = papermill("01_data", "-p corpora xquad,mlqa", tmp_path, **OFFLINE)
    assert out.returncode == 0, out.stderr[-3000:]
    missing = json.loads((tmp_path / "runs/data/metrics.json").read_text())["missing"]
    assert len(missing) == 12 + 98
    assert all("cannot get" in row["reason"] for row in missing)
    assert not (tmp_path / "figures").exists()


def test_what_a_mirror_holds_of_a_missing_archive_is_still_described(tmp_path, monkeypatch):
    """MLQA's archive cannot be had, but the mirror has one of its files: that one, and only that
    one, is described."""
    from s2dm.corpora import DataConfig, survey

    file = tmp_path / "mirror/mlqa/MLQA_V1/test/test-context-hi-question-zh.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"data": [
        {"paragraphs": [{"context": "a b", "qas": [{
             "id": "1", "question": "?", "answers": [{"text": "b", "answer_start": 2}]}]}]}]}))
    monkeypatch.setenv("S2DM_MIRROR", str(tmp_path / "mirror"))
    for name, value in OFFLINE.items(): monkeypatch.setenv(name, value)
    tables = survey(DataConfig(corpora="mlqa"))
    assert ([tuple(row)
             for row in tables["reading"][["lang_context", "lang_question", "questions"]].values]
            == [("hi", "zh", 1)])
    assert len(tables["missing"]) == 97


@pytest.mark.slow
def test_the_committed_report_comes_from_the_committed_records(tmp_path):
    """Every table, sentence and number behind a figure of the report in figures/small/, by the
    README's command."""
    command = next(c for c in COMMANDS if "07_report" in c).replace(
        "runs/07_report.ipynb",
        str(tmp_path / "run.ipynb")).replace("runs/figures/again", str(tmp_path / "again"))
    out, kept = shell(command, **OFFLINE), ROOT / "figures/small"
    assert out.returncode == 0, out.stderr[-3000:]
    made = {
        kind: sorted((tmp_path / "again").glob(f"*.{kind}"))
        for kind in ("csv", "md", "tex", "png", "pdf", "html", "xz")}
    assert all(made.values())
    assert len(made["csv"]) > 20
    assert all((kept / path.name).exists() for kind in ("html", "xz") for path in made[kind])
    tables = [path for path in made["csv"] if (kept / path.name).exists()] # those that are shown
    assert "figure3.csv" in [path.name for path in tables]
    for path in tables:
        pd.testing.assert_frame_equal(
            pd.read_csv(path), pd.read_csv(kept / path.name), rtol=1e-9, obj=path.name)
    pages = [path for path in made["md"] if (kept / path.name).exists()] # those that are shown
    assert "summary.md" in [path.name for path in pages]
    told = runpy.run_path(str(ROOT / "workflow/publish.py"))["told"](made["md"][0].parent)
    assert told == (kept / "tables.md").read_text(encoding="utf-8") and "## Table 5" in told
    for path in pages:
        assert (path.read_text(encoding="utf-8")
                == (kept / path.name).read_text(encoding="utf-8")), path.name


def run(stage, more, tmp_path, **env):
    """The README's command for a stage, and for the encoder that `more` names if it names one, with
    `more` parameters."""
    encoder = re.search(r"-p model (\S+)", more)
    wanted = f"-p model {encoder[1]}" if encoder else ""
    def fits(command):
        if not wanted: return "-p model" not in command
        return wanted in command.split(" -p variant")[0]
    fitting = next(command for command in COMMANDS if stage in command and fits(command))
    command = re.sub(r"runs/\w+\.ipynb", str(tmp_path / "run.ipynb"), fitting)
    out = shell(f"{command} {more.replace(wanted, '')}", OMP_NUM_THREADS="1", **env, **OFFLINE)
    assert out.returncode == 0, out.stderr[-3000:]


TINY = "-p max_steps 10 -p overrides latent_width=16,mlp_width=16,decoder_width=16"


@pytest.mark.slow
def test_from_the_embedded_encoder_to_answers(tmp_path):
    """The README's way without network, mirror or GPU, with small numbers: S2DM, reader, its
    evaluation, also in a new language, its analysis, and the examples that use them."""
    run("03_pretrain", TINY, tmp_path)
    folder, = (tmp_path / "runs/pretrain/small").iterdir()
    folder.rename(folder.with_name("s2dm_sp-refined"))
    run("04_finetune", "-p max_steps 4", tmp_path)
    run("05_evaluate", "-p languages svo_nadj -p samples 200", tmp_path)
    figures, runs = {p.name for p in (tmp_path / "figures").iterdir()}, tmp_path / "runs"
    names = {
        "pretrain_s2dm_sp-refined-decoder_width=16-latent_width=16-mlp_width=16_curves.png",
        "finetune_s2dm_sp-refined.png", "finetune_s2dm_sp-refined.csv",
        "evaluate_s2dm_sp-refined.csv"}
    assert names <= figures
    found = json.loads((runs / "evaluate/small/s2dm_sp-refined/seed0/metrics.json").read_text())
    assert ([(r["dataset"], r["context"], r["questions"]) for r in found["results"]]
            == [("synthetic", "svo_nadj", 500)])
    assert found["reader"]["system"] == "s2dm_sp-refined"
    out = shell(
        next(c for c in COMMANDS if "mine order" in c).replace(
            "runs/mine.ipynb", str(tmp_path / "mine.ipynb")).replace(" runs/", f" {runs}/")
        + " -p samples 200",
        OMP_NUM_THREADS="1", **OFFLINE)
    assert out.returncode == 0, out.stderr[-3000:]
    file, = runs.glob("evaluate/*checkpoint/metrics.json")
    assert ([(r["dataset"], r["context"], r["questions"])
             for r in json.loads(file.read_text())["results"]]
            == [("synthetic", "svo_post", 500), ("synthetic", "mine", 500)])
    assert len(json.loads(file.with_name("predictions.synthetic.mine.json").read_text())) == 500
    out = papermill(
        "06_analyse",
        "-p edition refined -p languages svo_nadj -p groups 50 -p sentences 30 -p questions 10 -p "
        "samples 100",
        tmp_path, OMP_NUM_THREADS="1", **OFFLINE)
    assert out.returncode == 0, out.stderr[-3000:]
    found = json.loads((runs / "analyse/small/s2dm_sp-refined/seed0/metrics.json").read_text())
    folder = runs / "analyse/small/s2dm_sp-refined/seed0"
    names = {
        "sts", "geometry", "pca", "retrieval", "probes", "predictability", "gradients",
        "boundaries", "constituents", "decoding"}
    assert names == set(found["tables"]) == {p.stem for p in folder.glob("*.csv")}
    assert [r["questions"] for r in found["tables"]["decoding"]] == [10]
    assert len(found["missing"]) == 1
    assert "no monolingual reader" in found["missing"][0]
    assert {r["kind"] for r in found["tables"]["sts"]} == {"mean", "y", "z"}
    vectors, reader = (e for e in EXAMPLES if "runs_dir" in e)
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", vectors + reader], cwd=ROOT,
        env={**os.environ, **OFFLINE}, capture_output=True, text=True, timeout=100)
    lines = out.stdout.strip().splitlines()
    assert re.fullmatch(r"tensor\(\[\[0\.\d+, 0\.\d+\]\]\)", lines[0]), out.stdout + out.stderr
    assert lines[1] == "torch.Size([1, 16]) torch.Size([1, 16])"
    assert len(lines) == 4
    assert all(re.search(r" \d+ \d+ -?\d+\.\d+$", line) for line in lines[2:])


def run_all_twice(name, parameters): # what each time prints
    "As people do in JupyterLab: the second time it finds what the first has left."
    import nbclient
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    notebook = load_notebook_node(str(ROOT / f"nbs/{name}.ipynb"))
    twice = parameterize_notebook(notebook, parameters, report_mode=False)
    again = copy.deepcopy(twice.cells)
    for cell in again: cell["id"] += "-2"
    twice.cells += again
    nbclient.NotebookClient(twice, timeout=280).execute(cwd=str(ROOT / "nbs"))
    return [[output["text"] for cell in cells for output in cell.get("outputs", ())
             if output.get("name") == "stdout"] for cells in (twice.cells[:len(again)], again)]


def test_run_all_twice_in_one_kernel(tmp_path):
    save_toy_questions(tmp_path / "questions.json")
    file = str(tmp_path / "questions.json")
    tiny = dict(variant="baseline", data=file, dev=file, max_steps=2, batch=4)
    first, second = run_all_twice("04_finetune", tiny)
    assert first == second and any("2 steps" in text for text in first)
    assert (tmp_path / "runs/finetune/small/baseline/seed0/metrics.json").is_file()


SOME = dict(languages="svo_nadj", samples=100)
RUNS = { # in this order: each reads what an earlier one left
    "02_encoder": dict(name="mine", texts="synthetic", parallel="synthetic", vocabulary=300,
                       layers=1, width=16, heads=2, feed_forward=16, max_steps=2),
    "03_pretrain": dict(variant="s2dm_pos", max_steps=2),
    "04_finetune": dict(variant="s2dm_pos", max_steps=2),
    "05_evaluate": dict(variant="s2dm_pos", **SOME),
    "06_reference": dict(language="svo_nadj", max_steps=2),
    "06_analyse": dict(variant="s2dm_pos", groups=30, sentences=20, questions=5, **SOME),
    "07_report": dict(profile="small"), "08_ask": dict(reader="FOLDER")}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_run_all_twice_in_every_run_notebook(tmp_path, mirror_folder, monkeypatch):
    assert {"01_data", *RUNS} == {p.stem for p in (ROOT / "nbs").glob("[0-9][0-9]_*.ipynb")}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    reader = tmp_path / "runs/finetune/small/s2dm_pos-refined/seed0/checkpoint"
    for name, parameters in RUNS.items():
        if name == "08_ask": parameters = dict(reader=str(reader))
        first, second = run_all_twice(name, parameters)
        assert [text for text in first if " s\n" not in text] == [
            text for text in second if " s\n" not in text], name
    monkeypatch.setenv("S2DM_MIRROR", mirror_folder)
    first, second = run_all_twice("01_data", dict(corpora="xquad"))
    assert first == second


@pytest.mark.slow
def test_from_real_text_to_answers(tmp_path, mirror_folder):
    "An encoder from real text, and what is built on it."
    paragraphs = json.loads((Path(mirror_folder) / "xquad/xquad.en.json").read_text(
        encoding="utf-8"))["data"][0]["paragraphs"][:2]
    questions = tmp_path / "questions.json"
    questions.write_text(json.dumps(dict(data=[dict(paragraphs=paragraphs)])), encoding="utf-8")
    run(
        "02_encoder",
        "-p texts tatoeba -p parallel tatoeba -p vocabulary 600 -p layers 1 -p width 24 -p "
        "feed_forward 24 -p max_steps 20",
        tmp_path, S2DM_MIRROR=mirror_folder)
    run(
        "04_finetune",
        f"-p model real-s -p variant baseline -p data {questions} -p dev {questions} -p max_steps "
        "4 -p batch 4 -p stride 32",
        tmp_path, S2DM_MIRROR=mirror_folder)
    out = papermill(
        "05_evaluate",
        "-p model real-s -p variant baseline -p datasets tydiqa,mlqa -p languages bn,de -p samples "
        "200",
        tmp_path, S2DM_MIRROR=mirror_folder, OMP_NUM_THREADS="1", **OFFLINE)
    assert out.returncode == 0, out.stderr[-3000:]
    found = json.loads((tmp_path / "runs/evaluate/real-s/baseline/seed0/metrics.json").read_text())
    assert ([(r["dataset"], r["context"], r["questions"]) for r in found["results"]]
            == [("tydiqa", "bn", 113)])
    assert len(found["missing"]) == 7
    assert "encoder_real-s_curves.png" in {p.name for p in (tmp_path / "figures").iterdir()}


def test_e5_learns_to_read_on_its_upper_layers(tmp_path, mirror_folder, with_e5):
    """The README's command with few questions; what its lower layers say is kept, and evaluation
    reads from there."""
    paragraphs = json.loads((Path(mirror_folder) / "xquad/xquad.en.json").read_text(
        encoding="utf-8"))["data"][0]["paragraphs"][:1]
    questions = tmp_path / "questions.json"
    questions.write_text(json.dumps(dict(data=[dict(paragraphs=paragraphs)])), encoding="utf-8")
    run(
        "04_finetune",
        f"-p model e5 -p data {questions} -p dev {questions} -p max_steps 2 -p batch 4", tmp_path)
    checkpoint = tmp_path / "runs/finetune/e5/baseline/seed0/checkpoint"
    assert (checkpoint / "encoder.safetensors").stat().st_size < 80e6
    assert not (checkpoint / "encoder").exists()
    assert json.loads((checkpoint / "reader.json").read_text())["encoder"]["lower_layers"] == 4
    assert list((tmp_path / "data/cache/states").glob("*.bin"))


@pytest.mark.parametrize("notebook, parameters, says", [
    ("02_encoder", "-p texts tatoba", "'tatoba' is no file and no corpus"),
    ("04_finetune", "-p modle mbert", "unknown parameter 'modle', did you mean 'model'?"),
    ("04_finetune", "-y 'seed: -1'", "seed is an int from 0 to 4294967295"),
    ("05_evaluate", "-p languages xx", "language='xx' is not possible"),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ("03_pretrain", "-p variant baseline", "baseline"),
        ("03_pretrain", "-p overrides kapa_min=1", "kapa_min"),
        ("01_data", "-p corpora xqad", "did you mean 'xquad'?"),
        ("01_data", "-p corpus xquad", "unknown parameter 'corpus', did you mean 'corpora'?"),
        ("04_finetune", "-p model mbrt",
         "model is one of small, real-s, real-m, e5, mbert, xlm100, xlmr, small-1, small-2, "
         "small-3, small-4, a hub id"),
        ("04_finetune", "-p variant s2dm_pso", "did you mean 's2dm_pos'?"),
        ("04_finetune", "-p edition draft", "choose one of paper, released, refined"),
        ("05_evaluate", "-p datasets xqad", "did you mean 'xquad'?"),
        ("06_analyse", "-p analyses umap", "choose one of sts, geometry")))])
def test_wrong_parameters_stop_a_run_at_once(notebook, parameters, says, tmp_path):
    out = papermill(notebook, parameters, tmp_path)
    assert out.returncode != 0
    assert "ParameterError" in out.stderr
    assert says in out.stderr
    assert not (tmp_path / "runs").exists()


def test_full_run_up_to_the_error_it_gives_without_data(tmp_path):
    command = next(c for c in COMMANDS if "model mbert" in c).replace(
        "runs/mbert.ipynb", str(tmp_path / "run.ipynb"))
    out = shell(command, **OFFLINE)
    assert out.returncode != 0
    for words in (
            "MissingData", "squad/train-v1.1.json (30.3 MB", "https://rajpurkar.github.io",
            "set S2DM_MIRROR"):
        assert words in out.stderr


@pytest.mark.slow
def test_evaluation_without_a_reader_says_what_to_run(tmp_path):
    out = papermill("05_evaluate", "-p variant baseline", tmp_path)
    assert out.returncode != 0
    assert "MissingData" in out.stderr
    assert "train the reader first, with nbs/04_finetune.ipynb" in out.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_an_analysis_without_an_s2dm_says_what_to_run(tmp_path):
    out = papermill("06_analyse", "-p variant s2dm_pos", tmp_path)
    assert out.returncode != 0
    assert "MissingData" in out.stderr
    assert "train the S2DM first, with nbs/03_pretrain.ipynb" in out.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_full_run_refuses_training_data_that_is_not_squad(tmp_path):
    mirror = tmp_path / "mirror/squad"
    mirror.mkdir(parents=True)
    (mirror / "train-v1.1.json").write_text("{}")
    out = papermill("04_finetune", "-p model mbert", tmp_path, S2DM_MIRROR=str(mirror.parent))
    assert out.returncode != 0 and "wrong checksum" in out.stderr
