"Records that travel: what is kept of unfinished work, and what comes back on another machine."
import io
import subprocess
import sys
import tarfile

import pytest
from conftest import ROOT
from fake_runs import fake_runs

from s2dm.core import DataError
from s2dm.results import open_records


def records(tmp_path, runs, *arguments):
    env = {"S2DM_RUNS": str(tmp_path / runs), "PYTHONPATH": str(ROOT), "PATH": ""}
    command = [sys.executable, ROOT / "workflow/records.py", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)


def test_whole_chains_come_back_and_a_reader_without_its_scores_does_not(tmp_path):
    first = fake_runs(
        tmp_path / "first", systems=("baseline", "s2dm_sp-refined"), seeds=2, model="e5")
    for system in ("baseline", "s2dm_sp-refined"):
        (first / f"evaluate/e5/{system}/seed1/metrics.json").unlink() # it was still reading
    records(tmp_path, "first", "keep", "e5", tmp_path / "records.tar.xz")
    records(tmp_path, "second", "restore", tmp_path / "records.tar.xz")
    second = tmp_path / "second"
    there = {p.relative_to(second).as_posix() for p in second.rglob("metrics.json")}
    whole = {p.relative_to(first).as_posix() for p in first.rglob("metrics.json")}
    assert whole - there == { # an S2DM too, whose weights the reader to come would look for
        f"{stage}/e5/{system}/seed1/metrics.json"
        for system in ("baseline", "s2dm_sp-refined")
        for stage in ("pretrain", "finetune", "analyse")}
    assert there <= whole
    assert all((second / name).read_bytes() == (first / name).read_bytes() for name in there)


@pytest.mark.parametrize("sizes", [[3_000_000], [400_000] * 5, [0] * 500])
def test_an_archive_cannot_fill_the_disk(tmp_path, monkeypatch, sizes):
    "Some hundred kB of zeros were 2 GiB of records."
    monkeypatch.setattr("s2dm.results.UNPACKED", 2_000_000 - 1)
    path = tmp_path / "records.tar.xz"
    with tarfile.open(path, "w:xz") as tar:
        for i, size in enumerate(sizes):
            info = tarfile.TarInfo(f"evaluate/small/baseline/seed{i}/metrics.json")
            info.size = size
            tar.addfile(info, io.BytesIO(bytes(size)))
    assert path.stat().st_size < 10_000
    says = "records.tar.xz: it unpacks to more than 1,999,999 bytes"
    with pytest.raises(DataError, match=says), open_records(path): pass


def test_what_is_there_is_left_as_it_is(tmp_path):
    fake_runs(tmp_path / "first", systems=("baseline",), seeds=1, model="e5")
    records(tmp_path, "first", "keep", "e5", tmp_path / "records.tar.xz")
    mine = tmp_path / "second/finetune/e5/baseline/seed0/metrics.json"
    mine.parent.mkdir(parents=True)
    mine.write_text("{}")
    records(tmp_path, "second", "restore", tmp_path / "records.tar.xz")
    assert mine.read_text() == "{}"
    assert (tmp_path / "second/evaluate/e5/baseline/seed0/metrics.json").is_file()
