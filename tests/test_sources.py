"""The real download code against a local http server: broken connections, wrong bytes, two
processes, no network, hostile archives.
"""
import hashlib
import io
import multiprocessing
import os
import subprocess
import sys
import tarfile
import time
import traceback
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from s2dm import sources
from s2dm.core import DataError, MissingData, ParameterError, data_dir
from s2dm.sources import REGISTRY, Source, cached, fetch, read_text


@pytest.fixture
def published(tmp_path):
    "A publisher's folder with one file of 300 kB."
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "big.bin").write_bytes(np.random.default_rng(0).bytes(300_000))
    return folder


def entry(server, name="big.bin", **changes):
    body = (server.folder / name).read_bytes()
    source = Source(
        f"demo/{name}", "demo", f"{server.url}/{name}", bytes=len(body),
        sha256=hashlib.sha256(body).hexdigest(), licence="CC0")
    source = Source(**{**source.__dict__, **changes})
    return {source.path: source}


def get(registry): return fetch(next(iter(registry)), registry)


def leftovers():
    return sorted(
        p.name for p in (data_dir() / "raw").rglob("*") if p.is_file() and p.suffix != ".lock")


def test_download_is_verified_and_kept(serve, published):
    server = serve(published)
    registry = entry(server)
    assert get(registry).read_bytes() == (published / "big.bin").read_bytes()
    get(registry)
    assert len(server.requests) == 1 and leftovers() == ["big.bin"]


def test_broken_connection_goes_on_where_it_stopped(serve, published):
    server = serve(published)
    server.trouble, server.cuts = {"cut"}, 2
    assert get(entry(server)).read_bytes() == (published / "big.bin").read_bytes()
    starts = [int(r.removeprefix("bytes=").rstrip("-")) for _, r in server.requests if r]
    assert len(server.requests) == 3
    assert len(starts) == 2
    assert 100_000 < starts[0] < starts[1]
    assert leftovers() == ["big.bin"]


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(serve, published):
    server = serve(published)
    server.trouble, server.cuts = {"cut"}, 99
    with pytest.raises(MissingData, match="demo/big.bin"): get(entry(server))
    assert leftovers() == ["big.bin.part"]
    server.trouble = set()
    assert get(entry(server)).read_bytes() == (published / "big.bin").read_bytes()
    assert server.requests[-1][1] is not None and leftovers() == ["big.bin"]


@pytest.mark.parametrize("part", [b"", b"x" * 1000, b"x" * 300_000, b"x" * 400_000], ids=len)
def test_a_server_without_ranges_or_a_stale_part_cannot_corrupt(serve, published, part):
    server = serve(published)
    registry, target = entry(server), data_dir() / "raw/demo/big.bin"
    for trouble in ({"no-range"}, set()):
        server.trouble = trouble
        target.parent.mkdir(parents=True, exist_ok=True)
        target.with_name("big.bin.part").write_bytes(part)
        try: file = get(registry)
        # a stale part of the right length prefix: the checksum finds it, and the next call starts
        # afresh
        except DataError as error:
            assert "wrong checksum" in str(error) and leftovers() == []
            file = get(registry)
        assert file.read_bytes() == (published / "big.bin").read_bytes()
        file.unlink()


def test_wrong_bytes_show_both_sums_and_keep_nothing(serve, published):
    server = serve(published)
    server.trouble = {"wrong"}
    registry = entry(server)
    body = (published / "big.bin").read_bytes()
    wrong = hashlib.sha256(bytes([body[0] ^ 1]) + body[1:]).hexdigest()
    with pytest.raises(DataError) as error: get(registry)
    assert registry["demo/big.bin"].sha256 in str(error.value)
    assert wrong in str(error.value)
    assert leftovers() == []


def test_md5_is_checked_where_it_is_all_there_is(serve, published):
    server = serve(published)
    with pytest.raises(DataError, match="wrong checksum"):
        get(entry(server, sha256="", md5="0" * 32))
    body = (published / "big.bin").read_bytes()
    get(entry(server, sha256="", md5=hashlib.md5(body).hexdigest()))
    assert leftovers() == ["big.bin"]


def test_a_file_changed_on_disk_is_found(serve, published):
    registry = entry(serve(published))
    get(registry).write_bytes(b"changed")
    with pytest.raises(DataError, match="wrong checksum") as error: get(registry)
    assert hashlib.sha256(b"changed").hexdigest() in str(error.value)


def test_first_checksum_is_recorded_said_and_held(serve, published, monkeypatch):
    server = serve(published)
    monkeypatch.setenv("S2DM_UNVERIFIED", "1")
    registry = entry(server, sha256="")
    with pytest.warns(UserWarning, match="no published checksum; recorded"): file = get(registry)
    assert (file.with_name("big.bin.sha256").read_text().strip()
            == hashlib.sha256(file.read_bytes()).hexdigest())
    file.write_bytes(b"changed")
    with pytest.raises(DataError, match="wrong checksum"): get(registry)


def _fetch_in_process(registry, start, results):
    start.wait()
    try: results.put(hashlib.sha256(get(registry).read_bytes()).hexdigest())
    except Exception as error: results.put(repr(error))


def test_processes_at_once_do_not_corrupt_each_other(serve, published):
    server = serve(published)
    registry, context = entry(server), multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    workers = [
        context.Process(target=_fetch_in_process, args=(registry, start, results))
        for _ in range(4)]
    for w in workers: w.start()
    start.set()
    got = [results.get(timeout=60) for _ in workers]
    for w in workers: w.join()
    assert got == [registry["demo/big.bin"].sha256] * 4
    assert len(server.requests) == 1 and leftovers() == ["big.bin"]


def test_offline_error_is_complete_and_quick():
    source = REGISTRY["mlqa/MLQA_V1/test/test-context-de-question-en.json"]
    archive = REGISTRY[source.archive].__dict__ | dict(url="http://127.0.0.1:9/MLQA_V1.zip")
    registry = REGISTRY | {source.archive: Source(**archive)}
    with pytest.raises(MissingData) as error: fetch(source.path, registry)
    for words in (
            "mlqa/MLQA_V1.zip", "75.7 MB", "http://127.0.0.1:9/MLQA_V1.zip", "S2DM_MIRROR",
            "CC BY-SA 3.0"):
        assert words in str(error.value)


def test_second_address_is_used_when_the_first_fails(serve, published):
    server = serve(published)
    get(entry(server, url="http://127.0.0.1:9/big.bin", copy=f"{server.url}/big.bin"))
    with pytest.raises(MissingData, match="status 404"):
        get(entry(server, path="demo/other.bin", url=f"{server.url}/missing.bin"))


def test_mirrors_are_folders_or_servers(serve, published, monkeypatch, tmp_path):
    server = serve(published)
    registry = entry(server, url="http://127.0.0.1:9/big.bin")
    shelf = tmp_path / "mirror"
    (shelf / "demo").mkdir(parents=True)
    (shelf / "demo/big.bin").write_bytes((published / "big.bin").read_bytes())
    monkeypatch.setenv("S2DM_MIRROR", str(shelf))
    assert get(registry) == shelf / "demo/big.bin"          # read in place
    monkeypatch.setenv("S2DM_MIRROR", serve(shelf).url + "/")
    assert get(registry) == data_dir() / "raw/demo/big.bin"
    (shelf / "demo/big.bin").write_bytes(b"wrong")
    monkeypatch.setenv("S2DM_MIRROR", str(shelf))
    with pytest.raises(DataError, match="wrong checksum"): get(registry)
    monkeypatch.setenv("S2DM_MIRROR", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="is no folder"): get(registry)


def test_a_file_without_an_address_comes_from_a_mirror_only(serve, published, monkeypatch):
    made = entry(serve(published), url="")
    with pytest.raises(
            MissingData,
            match="other files only. Set S2DM_MIRROR to .* holds this one as demo/big.bin"):
        get(made)
    shelf = data_dir().parent / "mirror/demo"
    shelf.mkdir(parents=True)
    (shelf / "big.bin").write_bytes((published / "big.bin").read_bytes())
    for place in (str(shelf.parent), serve(shelf.parent).url):
        monkeypatch.setenv("S2DM_MIRROR", place)
        assert get(made).read_bytes() == (published / "big.bin").read_bytes()


def test_stand_in_is_used_with_a_mirror_only_and_said(serve, published, monkeypatch, tmp_path):
    server = serve(published)
    old = entry(server, path="demo/old.bin")
    new = entry(
        server, path="demo/new.bin", sha256="", url="http://127.0.0.1:9/new.bin",
        stand_in="demo/old.bin")
    shelf = tmp_path / "mirror"
    (shelf / "demo").mkdir(parents=True)
    (shelf / "demo/old.bin").write_bytes((published / "big.bin").read_bytes())
    with pytest.raises(MissingData): fetch("demo/new.bin", new | old)
    monkeypatch.setenv("S2DM_MIRROR", str(shelf))
    with pytest.warns(
            UserWarning,
            match="demo/new.bin is not in the mirror; using its stand-in demo/old.bin"):
        assert fetch("demo/new.bin", new | old) == shelf / "demo/old.bin"


def _zip(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as box:
        for name, text in members: box.writestr(name, text)
    return buffer.getvalue()


def _tar(members, links=()):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as box:
        for name, text in members:
            info = tarfile.TarInfo(name)
            info.size = len(text)
            box.addfile(info, io.BytesIO(text.encode()))
        for name, to in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, to
            box.addfile(info)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "body",
    [_zip([("../../evil.txt", "no"), ("/tmp/s2dm-evil.txt", "no"), ("in/good.txt", "yes")]),
     _tar([("../../evil.txt", "no"), ("/tmp/s2dm-evil.txt", "no"), ("in/good.txt", "yes")], [
         ("in/link", "/etc"), ("in/passwd", "/etc/passwd")])],
    ids=["zip", "tar"])
def test_archives_cannot_write_or_read_outside(serve, tmp_path, body):
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "box").write_bytes(body)
    server = serve(folder)
    registry = entry(server, "box")
    def member(name):
        return registry | {"demo/m.txt": Source("demo/m.txt", "demo", f"demo/box#{name}")}
    before = {p for p in tmp_path.rglob("*")} | {p for p in Path("/tmp").glob("s2dm-evil*")}
    assert fetch("demo/m.txt", member("in/good.txt")).read_text() == "yes"
    new = {
        p.relative_to(data_dir())
        for p in (set(tmp_path.rglob("*")) | set(Path("/tmp").glob("s2dm-evil*"))) - before
        if p.is_file() and p.suffix != ".lock"}
    assert new == {Path("raw/demo/box"), Path("raw/demo/m.txt")}
    for name in ("in/absent.txt", "in/passwd", "in/link"):
        (data_dir() / "raw/demo/m.txt").unlink(missing_ok=True)
        with pytest.raises(DataError): fetch("demo/m.txt", member(name))
        assert not (data_dir() / "raw/demo/m.txt").exists()


def _encrypted(): # says that its member is
    body = bytearray(_zip([("a.txt", "yes")]))
    body[6] |= 1
    body[body.index(b"PK\x01\x02") + 8] |= 1
    return bytes(body)


def _damaged(method): # within the compressed bytes
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as box: box.writestr("a.txt", "yes no " * 999)
    body = buffer.getvalue()
    return body[:40] + bytes(b ^ 255 for b in body[40:52]) + body[52:]


@pytest.mark.parametrize(
    "body",
    [b"not an archive", _zip([("a.txt", "yes" * 999)])[:400], _tar([("a.txt", "yes" * 999)])[:60],
     b"PK\x03\x04", b"\x1f\x8b\x08\x00", _encrypted(), _damaged(zipfile.ZIP_DEFLATED),
     _damaged(zipfile.ZIP_LZMA), _damaged(zipfile.ZIP_BZIP2)],
    ids=["text", "half a zip", "half a tar", "start of a zip", "start of a gzip", "encrypted",
         "deflate", "lzma", "bzip2"])
def test_broken_archives_are_named(serve, tmp_path, body):
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "box").write_bytes(body)
    registry = (entry(serve(folder), "box")
                | {"demo/a.txt": Source("demo/a.txt", "demo", "demo/box#a.txt")})
    with pytest.raises(DataError, match="box cannot be unpacked"): fetch("demo/a.txt", registry)
    assert leftovers() == ["box"]


def test_a_member_with_a_wrong_checksum_is_not_kept(serve, tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "box").write_bytes(_zip([("a.txt", "yes")]))
    registry = (entry(serve(folder), "box")
                | {"demo/a.txt": Source("demo/a.txt", "demo", "demo/box#a.txt", sha256="0" * 64)})
    with pytest.raises(DataError, match="box#a.txt: wrong checksum") as error:
        fetch("demo/a.txt", registry)
    assert hashlib.sha256(b"yes").hexdigest() in str(error.value) and leftovers() == ["box"]


def test_a_full_disk_is_said_and_what_came_is_kept(serve, published, monkeypatch):
    registry, real_open = entry(serve(published)), open

    class Full(io.FileIO):
        def write(self, data):
            if self.tell() >= 131_072: raise OSError(28, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(
        sources, "open",
        lambda file, mode: Full(file, mode.replace("b", ""))
            if str(file).endswith(".part")
            else real_open(file, mode),
        raising=False)
    with pytest.raises(DataError, match="cannot write .*big.bin: No space left on device"):
        get(registry)
    assert leftovers() == ["big.bin.part"]
    monkeypatch.delattr(sources, "open")
    assert get(registry).read_bytes() == (published / "big.bin").read_bytes()


def test_no_more_bytes_are_taken_than_registered(serve, published):
    "A server that never ends, one that says so beforehand, and one with a stale part here."
    server = serve(published)
    server.trouble = {"flood"}
    registry = entry(server, bytes=12_000)
    with pytest.raises(DataError, match="big.bin: the server sends more than 12,000 bytes"):
        get(registry)
    assert server.sent < 16e6 and leftovers() == [] # what its socket held
    server.length = "400000000"
    with pytest.raises(DataError, match="sends 400,000,000 bytes; expected 12,000 at most"):
        get(registry)
    server.trouble, server.length = set(), ""
    (data_dir() / "raw/demo/big.bin.part").write_bytes(bytes(400_000))
    assert get(entry(server)).read_bytes() == (published / "big.bin").read_bytes()
    assert leftovers() == ["big.bin"]


@pytest.mark.parametrize("length", ["abc", "-5", "1e3", "٣", "9" * 5000], ids=range(5))
def test_a_length_that_is_none_is_said(serve, published, length):
    server = serve(published)
    server.length = length.encode().decode("latin-1")
    with pytest.raises(DataError, match="the server says Content-Length: .*expected a number"):
        get(entry(server))
    assert leftovers() == []


def test_a_download_does_not_trickle_for_ever(serve, published, monkeypatch):
    "Each byte comes in time; what has come is kept."
    server = serve(published)
    server.trouble = {"trickle"}
    monkeypatch.setattr(sources, "SECONDS", .5)
    monkeypatch.setattr(sources, "SLOWEST", 1e9)
    start = time.monotonic()
    with pytest.raises(MissingData, match="big.bin: Timeout, no answer or too slow"):
        get(entry(server))
    assert time.monotonic() - start < 5
    assert leftovers() == ["big.bin.part"] and len(server.requests) == 1


def test_what_has_no_checksum_does_not_come_by_plain_http(serve, published, monkeypatch):
    server = serve(published)
    registry = entry(server, sha256="")
    with pytest.raises(MissingData, match="refused: plain http, and no checksum is registered"):
        get(registry)
    monkeypatch.setenv("S2DM_MIRROR", server.url)
    with pytest.raises(MissingData, match="S2DM_MIRROR=http://[^ ]*: plain http"):
        get(entry(server, sha256="", url="https://127.0.0.1:9/big.bin", path="demo/big.bin"))
    assert not server.requests and leftovers() == []


@pytest.mark.parametrize("trouble", ["", "wrong", "down", "flood"])
@pytest.mark.parametrize("name", ["me:s3cret", "me:s3c@ret", "s3cret"])
def test_no_message_repeats_a_password(serve, published, monkeypatch, trouble, name):
    server = serve(published)
    server.trouble = {trouble}
    registry = entry(server) # the mirror lacks demo/big.bin
    if trouble:
        (published / "demo").mkdir()
        (published / "demo/big.bin").write_bytes((published / "big.bin").read_bytes())
    else: registry = entry(server, url="http://127.0.0.1:9/big.bin")
    for address in (server.url, "http://127.0.0.1:9", "ftp://127.0.0.1"):
        monkeypatch.setenv("S2DM_MIRROR", address.replace("://", f"://{name}@"))
        with pytest.raises(DataError) as error: get(registry)
        said = "".join(traceback.format_exception(error.value))
        assert "127.0.0.1" in str(error.value)
        assert "s3c" not in said and "ret@" not in said, said
    monkeypatch.setenv("S2DM_MIRROR", f"{name}@127.0.0.1/data")
    with pytest.raises(DataError, match="127.0.0.1/data is no folder") as error: get(registry)
    assert "s3c" not in str(error.value)


def test_a_mirror_is_named_as_people_name_folders(serve, published, monkeypatch, tmp_path):
    registry = entry(serve(published), url="http://127.0.0.1:9/big.bin")
    shelf = tmp_path / "my mirror"
    (shelf / "demo").mkdir(parents=True)
    (shelf / "demo/big.bin").write_bytes((published / "big.bin").read_bytes())
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("~/my mirror", "~/my mirror/", shelf.as_uri(), f"file://localhost{shelf}",
                 f"FILE://{shelf}/"):
        monkeypatch.setenv("S2DM_MIRROR", name)
        assert get(registry) == shelf / "demo/big.bin"
        assert not sources.needs_publisher("demo/big.bin")
    for name in ("~nobody-here/x", "file://elsewhere/x", "file:///nowhere", "ftp://x/y", "s3://x"):
        monkeypatch.setenv("S2DM_MIRROR", name)
        with pytest.raises(DataError, match=f"S2DM_MIRROR={name} is no folder; set it to"):
            get(registry)


@pytest.mark.parametrize("size, most", [(5, 5), (None, 100)])
def test_a_member_is_not_larger_than_registered(serve, tmp_path, size, most):
    "Without a registered size, a hundred times the archive: text does not shrink more."
    folder = tmp_path / "published"
    folder.mkdir()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as box:
        box.writestr("m.txt", bytes(20_000_000))
    (folder / "box").write_bytes(buffer.getvalue())
    if not size: most *= len(buffer.getvalue())
    registry = entry(serve(folder), "box")
    registry["demo/m.txt"] = Source("demo/m.txt", "demo", "demo/box#m.txt", bytes=size)
    with pytest.raises(DataError, match=f"m.txt unpacks to more than {most:,} bytes"):
        fetch("demo/m.txt", registry)
    assert leftovers() == ["box"]


KILLED = """
import os, signal, sys
from s2dm import sources
def place(*_): os.kill(os.getpid(), signal.SIGKILL)
sources._place = place
sources.fetch("demo/big.bin", {"demo/big.bin": sources.Source("demo/big.bin", "demo", sys.argv[1],
                                                              sha256="0")})
"""


def test_what_killed_downloads_left_is_removed_at_the_next(serve, published):
    server = serve(published)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, f"{server.url}/big.bin"], cwd=ROOT, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    assert killed.returncode < 0 and leftovers() == ["big.bin.part"]
    folder = data_dir() / "raw/demo"
    (folder / "tmpab3_x9qz").write_bytes(bytes(1000)) # pooch's, in earlier versions
    (folder / ".m.txt.999999999.tmp").write_bytes(bytes(1000))
    (folder / "tmp-of-mine").touch()
    assert get(entry(server)).read_bytes() == (published / "big.bin").read_bytes()
    assert leftovers() == ["big.bin", "tmp-of-mine"]


def contents(folder): return {p: p.stat().st_mtime_ns for p in [folder, *folder.rglob("*")]}


def test_a_data_folder_that_has_everything_is_not_written(serve, published, monkeypatch):
    "Not even a lock: it may lie on a disk that cannot be written."
    from datasets import Dataset
    from s2dm.encoder import FeatureCache
    from s2dm.synthetic import Synthetic
    from s2dm.toy import toy_encoder

    def build(): return Dataset.from_dict({"x": [1]})
    build.__module__ = sources.__name__
    server = serve(published)
    encoder = toy_encoder()

    def use():
        get(entry(server))
        cached("demo", [published / "big.bin"], build)
        cache = FeatureCache(encoder)
        cache[cache.encode(["a dog barks"], progress=False)[0]]
        return len(Synthetic().similarity("svo", "svo", "dev"))
    size = use()
    for lock in data_dir().rglob("*.lock"): lock.unlink()
    before = contents(data_dir())
    def fail(*_): pytest.fail("locks")
    monkeypatch.setattr("s2dm.core.FileLock", fail)
    assert use() == size and contents(data_dir()) == before


def test_unknown_path_lists_what_there_is():
    with pytest.raises(ParameterError, match="did you mean 'xquad/xquad.de.json'"):
        fetch("xquad/xquad.dee.json")


def test_registry_pins_every_address():
    for s in REGISTRY.values():
        for url in filter(None, [s.url, s.copy]):
            assert (not url.startswith("https://raw.githubusercontent.com") or "/r2." in url
                    or any(len(p) == 40 for p in url.split("/"))), url
        assert len(s.sha256) in (0, 64) and len(s.md5) in (0, 32)
    assert REGISTRY["squad/train-v1.1.json"].md5 == "981b29407e0affa3b1b156f72073b945"
    assert REGISTRY["squad/dev-v1.1.json"].md5 == "3e85deb501d4e538b6bc56f786231552"


def test_importing_every_module_fetches_nothing():
    code = """
import pkgutil, importlib, socket
def refuse(*a, **k): raise AssertionError("network at import")
socket.socket.connect = refuse; socket.getaddrinfo = refuse
import s2dm
for m in pkgutil.iter_modules(s2dm.__path__): importlib.import_module("s2dm." + m.name)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=ROOT, timeout=200)
    assert not data_dir().exists()


def test_text_is_read_strictly(tmp_path):
    file = tmp_path / "a.txt"
    for raw, says in [
            (b"\xef\xbb\xbfa\n", "a.txt:1: byte-order mark"),
            (b"a\n\nb\r\nc", "a.txt:3: carriage return"),
            ("a\né".encode("latin-1"), "a.txt:2: byte 0xe9"),
            ("a\n".encode("utf-16"), "a.txt:1: byte 0xff")]:
        file.write_bytes(raw)
        with pytest.raises(DataError) as error: read_text(file)
        assert says in str(error.value)
    file.write_bytes("a\r\né\r\n\u2028".encode())
    assert read_text(file, crlf=True) == "a\né\n\u2028"
    file.write_bytes(b"a\r\nb\rc\r\n")
    with pytest.raises(DataError, match="a.txt:2: carriage return"): read_text(file, crlf=True)


def test_cache_follows_files_and_code(tmp_path, monkeypatch):
    from datasets import Dataset

    file, calls = tmp_path / "a.txt", []
    code = tmp_path / "reader_module.py"
    code.write_text("def build(): raise NotImplementedError\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import reader_module

    def build():
        calls.append(1)
        return Dataset.from_dict({"text": [file.read_text()]})

    build.__module__ = "reader_module"
    for text, edit, expected in [
            ("one", "", 1), ("one", "", 1), ("two", "", 2), ("two", "# another parser\n", 3)]:
        file.write_text(text)
        code.write_text(code.read_text() + edit)
        assert cached("demo", [file], build)[0]["text"] == text and len(calls) == expected
    assert reader_module.build is not build


def test_half_written_cache_is_built_again(tmp_path, monkeypatch):
    from datasets import Dataset

    file = tmp_path / "a.txt"
    file.write_text("x")

    def build(): raise KeyboardInterrupt

    build.__module__ = sources.__name__
    with pytest.raises(KeyboardInterrupt): cached("demo", [file], build)
    (folder,) = [p for p in (data_dir() / "cache").iterdir() if p.suffix == ".lock"]
    os.makedirs(str(folder).removesuffix(".lock") + ".partial/rubbish")

    def build(): return Dataset.from_dict({"x": [1]})

    build.__module__ = sources.__name__
    assert cached("demo", [file], build)["x"][:] == [1]


@pytest.mark.parametrize("name", ["dataset_info.json", "state.json", "data-*.arrow"])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "deep"])
def test_a_damaged_cache_is_named(tmp_path, name, damage):
    from datasets import Dataset

    file = tmp_path / "a.txt"
    file.write_text("x")

    def build(): return Dataset.from_dict({"x": list(range(1000))})

    build.__module__ = sources.__name__
    cached("demo", [file], build)
    part, = (data_dir() / "cache").glob(f"demo-*/{name}")
    raw = part.read_bytes()
    part.unlink()
    if damage != "gone":
        part.write_bytes(dict(cut=raw[:len(raw) // 2], empty=b"", deep=b"[" * 100_000)[damage])
    with pytest.raises(DataError, match="cache/demo-.* remove it, and it is made again"):
        cached("demo", [file], build)


def test_real_mirror_over_http(serve, mirror_folder, monkeypatch):
    "The download code on real files, over http, with connections that break."
    server = serve(mirror_folder)
    monkeypatch.setenv("S2DM_MIRROR", server.url)
    server.trouble, server.cuts = {"cut"}, 1
    for path in (
            "ud/r2.7/UD_Thai-PUD/th_pud-ud-test.conllu", "xquad/xquad.zh.json", "zh_sts/dev.csv"):
        server.cuts = 1
        file = fetch(path)
        assert file.is_relative_to(data_dir())
        assert file.read_bytes() == (Path(mirror_folder) / path).read_bytes()
    assert sum(r is not None for _, r in server.requests) == 3
    server.trouble = {"wrong"}
    with pytest.raises(DataError, match="wrong checksum, nothing was kept"):
        fetch("xquad/xquad.en.json")
    assert not (data_dir() / "raw/xquad/xquad.en.json").exists()
    assert not (data_dir() / "raw/xquad/xquad.en.json.part").exists()
    server.trouble = set()
    with pytest.warns(UserWarning, match="stand-in ud/r2.5"):
        assert "r2.5" in str(fetch("ud/r2.7/UD_Japanese-PUD/ja_pud-ud-test.conllu"))


def test_real_mirror_matches_the_registry(real, mirror_folder):
    found = [s for s in REGISTRY.values() if (Path(mirror_folder) / s.path).is_file()]
    assert len(found) > 150
    for s in found:
        assert fetch(s.path) == Path(mirror_folder) / s.path
        assert s.bytes == (Path(mirror_folder) / s.path).stat().st_size
        assert s.sha256
