"""The page to ask in, in a real browser: type, click, read the marked answer, in scripts that run
both ways, on a desktop and on a phone. The browser is Chromium, without a window; pictures of the
page go to the folder S2DM_SCREENSHOTS, if it is set.
"""
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from s2dm.toy import toy_finder

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = [name for name in ("selenium", "voila", "papermill")
           if importlib.util.find_spec(name) is None]
MISSING += [] if BROWSER and shutil.which("chromedriver") else ["chromium with its driver"]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

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


def test_readers_stand_side_by_side_where_there_is_room(page):
    page.ask(PASSAGES["chinese"][2], "?")
    wait_for(lambda: len(page.marks()) == 2)
    a, b = (text.rect for text in page.all(".s2dm-text"))
    if page.size == "desktop": assert a["y"] == b["y"] and a["x"] + a["width"] <= b["x"]
    else: assert a["y"] + a["height"] <= b["y"]
    assert "first" in page.all(".widget-html b")[0].text


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


def test_no_answer_and_no_question_are_said(page):
    page.ask("ภาษา", "?\nไทย?")
    wait_for(lambda: page.texts() == ["ภาษา"] * 4) # two questions, two readers
    assert page.marks() == []
    assert len([b for b in page.all(".s2dm-none") if "no answer" in b.text]) == 4
    keep_picture(page, "none")
    page.ask("ภาษา", " ")
    wait_for(lambda: any("there is no question" in p.text for p in page.all("p.s2dm-none")))
    assert page.texts() == []


def test_only_this_machine_is_served(address):
    "The page listens on loopback alone, which is what `make demo` asks for."
    assert "--Voila.ip=127.0.0.1" in (ROOT / "Makefile").read_text()
    port = int(address.strip("/").rpartition(":")[2])
    own = socket.gethostbyname(socket.gethostname())
    if own.startswith("127."): pytest.skip("this machine has no other address")
    assert is_open("127.0.0.1", port) and not is_open(own, port)
