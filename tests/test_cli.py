"""The command line, and the package as others install it: exit codes and output of a process of its
own, Ctrl-C, closed pipes; sdist and wheel, with nothing but what they ask for.
"""
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

from s2dm.cli import main
from s2dm.core import write_json
from s2dm.toy import save_toy_questions, toy_finder

TEXTS = { # what is found, and a passage in which it stands
    "กรุงเทพ": "ภาษาไทย กรุงเทพภาษา ไทย",
    "北京": "中国北京中文。", "القاهرة": "العربية القاهرة العربية"}


@pytest.fixture(scope="module")
def finder(tmp_path_factory):
    "A reader that finds three words, and ada."
    folder = tmp_path_factory.mktemp("readers") / "finder"
    return str(toy_finder([*TEXTS, "ada"]).save_pretrained(folder))


def process(*arguments, **options):
    "`python -m s2dm` by itself."
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "s2dm", *arguments]
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, **options)


@pytest.mark.parametrize("word", TEXTS)
def test_answers_in_other_scripts(finder, tmp_path, capsys, word):
    file = tmp_path / "text.txt"
    file.write_text(TEXTS[word], encoding="utf-8")
    assert main(["answer", "--reader", finder, "--context", str(file), "--json", "?"]) == 0
    (asked,) = json.loads(capsys.readouterr().out)
    (found,) = asked["answers"]
    assert found["text"] == word == TEXTS[word][found["start"]:found["end"]]
    assert .9 < found["probability"] <= 1


def test_from_standard_input_in_a_process_of_its_own(finder, tmp_path):
    running = process("answer", "--reader", finder, "Who?", "Where?", cwd=tmp_path)
    out, err = running.communicate(b"so ada\nmade a boat.", timeout=200)
    assert running.returncode == 0, err.decode()
    assert out.decode().splitlines() == ["ada", "ada"] and not err
    assert [*tmp_path.iterdir()] == [] or {p.name for p in tmp_path.iterdir()} <= {
        "data", "runs", "figures"}


def test_no_answer_and_bad_use_have_their_exit_codes(finder, tmp_path, capsys):
    file = tmp_path / "text.txt"
    file.write_text("so grace made a boat.", encoding="utf-8")
    ask = ["answer", "--context", str(file), "Who?", "--reader"]
    assert main([*ask, finder]) == 1
    shown = capsys.readouterr()
    assert shown.out == "\n" and shown.err == "s2dm: no answer: Who?\n"
    assert main([*ask, finder, "--threshold", "0"]) == 0
    capsys.readouterr()
    for more, says in (
            ([*ask, str(tmp_path / "nobody")], "is no folder and no hub id"),
            ([*ask, finder, "--top", "50"], "top_k=50 is not possible; expected 1 to 20"),
            (["answer", "--context", str(tmp_path / "x.txt"), "Who?"], "x.txt is not there"),
            (["answer", "--context", str(tmp_path), "Who?"], "cannot be read: Is a directory"),
            (["evaluate", str(file), "--reader", finder], "expected JSON")):
        assert main(more) == 2
        shown = capsys.readouterr()
        assert says in shown.err and shown.err.count("\n") == 1 and not shown.out
    for wrong in (["answer"], ["ask"], [], ["answer", "--threshold", "3", "Who?"]):
        with pytest.raises(SystemExit) as stopped: main(wrong)
        assert stopped.value.code == 2


def test_files_with_questions_that_have_no_answer_are_scored(finder, tmp_path, capsys):
    context = "so ada made a boat."
    asked = [
        dict(id="a", question="Who?", is_impossible=False,
             answers=[dict(text="ada", answer_start=3)]),
        dict(id="b", question="Who?", is_impossible=True, answers=[],
             plausible_answers=[dict(text="boat", answer_start=14)])]
    paragraphs = [dict(context=context, qas=asked[:1]),
                  dict(context="so grace made it", qas=asked[1:])]
    write_json(tmp_path / "q.json",
               dict(version="v2.0", data=[dict(title="", paragraphs=paragraphs)]))
    said = tmp_path / "said.json"
    asked = ["evaluate", str(tmp_path / "q.json"), "--reader", finder, "--lang", "sw", "--json"]
    assert main([*asked, "--predictions", str(said)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["exact"], report["HasAns_exact"], report["NoAns_exact"]) == (100, 100, 100)
    assert report["best_exact"] == 100 and report["total"] == 2
    assert json.loads(said.read_text()) == dict(a="ada", b="")
    assert main([*asked, "--threshold", "0"]) == 0 # then there is always an answer
    assert json.loads(capsys.readouterr().out)["NoAns_exact"] == 0
    assert main([*asked, "--metric", "mlqa"]) == 2
    assert "a question has no answer" in capsys.readouterr().err


def test_mlqa_has_its_own_rules(finder, tmp_path, capsys):
    save_toy_questions(tmp_path / "q.json", 4)
    asked = ["evaluate", str(tmp_path / "q.json"), "--reader", finder, "--json", "--metric", "mlqa"]
    assert main(asked) == 0
    assert json.loads(capsys.readouterr().out) == dict(
        exact=pytest.approx(25), f1=pytest.approx(25), total=4)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_an_interrupt_ends_with_one_line(finder, tmp_path):
    running = process("answer", "--reader", finder, "Who?", cwd=tmp_path)
    time.sleep(3) # it waits for the text
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=100)
    assert running.returncode == 130
    assert (out, err.decode()) == (b"", "s2dm: interrupted\n")


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_a_closed_pipe_is_no_error(tmp_path):
    for i in range(3000):
        write_json(tmp_path / f"runs/finetune/small/s2dm_sp/seed{i}/config.json",
                   dict(parameters={}, started="2026-01-01T00:00:00"))
    running = process("runs", cwd=tmp_path)
    assert running.stdout.readline().split()[:2] == [b"stage", b"run"]
    running.stdout.close()
    assert running.wait(100) == 141 and running.stderr.read() == b""


def test_runs_and_encoders_are_listed(tmp_path, capsys):
    assert main(["runs"]) == 0 and "no runs in" in capsys.readouterr().err
    folder = tmp_path / "runs/finetune/small/baseline/seed0"
    write_json(folder / "config.json", dict(parameters={}, started="2026-01-01", wall_time_s=3.5))
    write_json(folder / "checkpoint/encoder/config.json", dict(model_type="bert"))
    (folder / "checkpoint/config.json").write_text("{")
    assert main(["runs", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row == dict(stage="finetune", run="small/baseline/seed0", state="not finished",
                       started="2026-01-01", seconds=3.5)
    write_json(folder / "metrics.json", {})
    assert main(["runs"]) == 0 and " finished " in capsys.readouterr().out
    assert main(["encoders"]) == 0
    shown = capsys.readouterr().out
    assert "intfloat/multilingual-e5-small" in shown and "embedded" in shown


# The package

def needed(requirements):
    "The installed distributions that requirements lead to, without extras."
    found, todo = {}, [Requirement(r) for r in requirements]
    while todo:
        r = todo.pop()
        name = r.name.lower().replace("_", "-")
        if name in found or (r.marker and not r.marker.evaluate({"extra": ""})): continue
        found[name] = distribution(r.name)
        todo += map(Requirement, found[name].requires or ())
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "A wheel, built from the sdist, built from what git would commit."
    folder = tmp_path_factory.mktemp("built")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
        capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, listed):
        if not name.startswith("s2dm/") and "/" in name or not (ROOT / name).is_file(): continue
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    def build(kind, where):
        code = f"from setuptools import build_meta as b; print(b.build_{kind}({str(folder)!r}))"
        return folder / subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], cwd=where, check=True,
            capture_output=True, text=True).stdout.splitlines()[-1]
    sdist = build("sdist", folder / "source")
    with tarfile.open(sdist) as archive: archive.extractall(folder, filter="data")
    return build("wheel", folder / sdist.name.removesuffix(".tar.gz"))


@pytest.fixture(scope="module")
def site(built, tmp_path_factory):
    "A folder of packages: the wheel, and links to what it asks for."
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(built) as wheel:
        wheel.extractall(folder)
        about = next(n for n in wheel.namelist() if n.endswith("METADATA"))
        lines = wheel.read(about).decode().splitlines()
    asked = [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist: ")]
    for installed in needed(asked).values():
        for top in {file.parts[0] for file in installed.files} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(installed.locate_file(top))
    return folder


def run_outside(site, folder, code, *arguments):
    "Python with nothing but these packages, in a folder of its own."
    home = folder / "home"
    home.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-S", "-B", "-c", code, *arguments], cwd=folder, capture_output=True,
        text=True, timeout=250,
        env=dict(PATH="/usr/bin:/bin", PYTHONPATH=str(site), HOME=str(home), PYTHONUTF8="1"))


def test_a_reader_needs_little(site, finder, tmp_path):
    "No package of training or of figures is there, and none is missed; nothing is left behind."
    there = {p.name for p in site.iterdir()}
    assert not there & {"datasets", "pandas", "matplotlib", "accelerate", "conllu", "pooch",
                        "pyarrow", "scipy", "tensorboard", "seaborn", "nbdev"}
    assert (site / "s2dm/py.typed").is_file() and (site / "s2dm/embedded/config.json").is_file()
    code = ("import sys, s2dm; assert 'torch' not in sys.modules; "
            "from s2dm import S2DMReader, TextVectors; import s2dm.metrics, s2dm.reading; "
            "reader = S2DMReader.from_pretrained(sys.argv[1]); "
            "print(s2dm.__file__); print(reader.answer('Who?', 'so ada made it.')[0].text)")
    out = run_outside(site, tmp_path, code, finder)
    assert out.returncode == 0, out.stderr
    assert out.stdout.splitlines() == [str(site / "s2dm/__init__.py"), "ada"] and not out.stderr
    left = {p.name for p in tmp_path.iterdir()} - {"home", "data", "runs", "figures"}
    assert left == set() and [*(tmp_path / "home").iterdir()] == []


def test_the_command_of_the_wheel_answers(site, finder, tmp_path):
    (tmp_path / "text.txt").write_text("so ada made it.", encoding="utf-8")
    code = ("import sys; from importlib.metadata import entry_points as e; "
            "sys.exit([*e(group='console_scripts', name='s2dm')][0].load()(sys.argv[1:]))")
    out = run_outside(
        site, tmp_path, code, "answer", "--reader", finder, "--context", "text.txt", "Who?")
    assert (out.returncode, out.stdout, out.stderr) == (0, "ada\n", "")


def test_what_training_needs_is_named(site, tmp_path):
    out = run_outside(site, tmp_path, "import s2dm.fit")
    assert out.returncode == 1 and "No module named" in out.stderr


def test_help_tells_the_parameters():
    import pydoc

    from s2dm import S2DMReader, TextVectors

    shown = pydoc.render_doc(S2DMReader.answer, renderer=pydoc.plaintext)
    for says in ("question: one question, or many", "top_k: answers of a question",
                 "threshold: least probability", "Returns: of the question"):
        assert says in shown
    assert "device: None: a GPU" in pydoc.render_doc(TextVectors.from_pretrained)
    assert "encoder: of transformers" in pydoc.render_doc(S2DMReader.__init__)


def test_a_module_knows_its_two_names():
    import s2dm

    assert {"S2DMReader", "TextVectors"} <= {*dir(s2dm)}
    with pytest.raises(AttributeError, match="no attribute 'Reader'"): s2dm.Reader # noqa: B018
    assert Path(s2dm.__file__).with_name("py.typed").exists()
