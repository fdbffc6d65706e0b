"""Records that travel: what is kept of unfinished work, and what comes back on another machine. And
what is shown in figures/: it is replaced by one command, and never by a report on fewer seeds.
"""
import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import ROOT
from fake_runs import fake_runs

from s2dm.core import DataError
from s2dm.results import collect, open_records, save_records


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


def test_restored_runs_are_not_repeated(tmp_path):
    """Snakemake repeats a run whose record is older than that of the run before it; restoring keeps
    the times."""
    first = fake_runs(tmp_path / "first", systems=("baseline",), seeds=1, model="e5")
    stages = ("finetune", "evaluate", "analyse")
    for hour, stage in enumerate(stages): # one after the other, a day ago
        for file in (first / f"{stage}/e5/baseline/seed0").glob("*.json"):
            os.utime(file, (time.time() - 86400 + 3600 * hour,) * 2)
    records(tmp_path, "first", "keep", "e5", tmp_path / "records.tar.xz")
    records(tmp_path, "second", "restore", tmp_path / "records.tar.xz")
    times = [(tmp_path / f"second/{stage}/e5/baseline/seed0/metrics.json").stat().st_mtime
             for stage in stages]
    assert [round(b - a) for a, b in pairwise(times)] == [3600, 3600]


@pytest.mark.parametrize(
    "profile, model, kept", [("encoders", "small-1", [0, 1, 2]), ("e5", "e5", [2])])
def test_what_is_not_to_be_analysed_is_done_when_it_has_read(tmp_path, profile, model, kept):
    "In the profile e5 two seeds are analysed, in the profile encoders none."
    first = fake_runs(tmp_path / "first", systems=("baseline",), seeds=3, model=model)
    shutil.rmtree(first / "analyse")
    records(tmp_path, "first", "keep", profile, tmp_path / "records.tar.xz")
    records(tmp_path, "second", "restore", tmp_path / "records.tar.xz")
    found = (tmp_path / "second").glob(f"evaluate/{model}/baseline/seed*/metrics.json")
    assert sorted(int(file.parent.name[4:]) for file in found) == kept


def test_runs_of_a_cut_encoder_are_no_runs_of_the_whole_one(tmp_path):
    for model in ("e5", "e5-layer4"):
        fake_runs(tmp_path / "first", systems=("baseline",), seeds=1, model=model)
    records(tmp_path, "first", "keep", "e5-layer4", tmp_path / "records.tar.xz")
    records(tmp_path, "second", "restore", tmp_path / "records.tar.xz")
    kept = {folder.name for folder in (tmp_path / "second").glob("*/*")}
    assert kept == {"e5-layer4"}


def test_trained_encoders_travel_with_their_weights(tmp_path):
    done = tmp_path / "first/encoder/small-2/seed2"
    (done / "checkpoint").mkdir(parents=True)
    (tmp_path / "first/encoder/small-1/seed1").mkdir(parents=True) # it has only begun
    for name in ("config.json", "metrics.json", "checkpoint/model.safetensors"):
        (done / name).write_text(name)
    out = records(tmp_path, "first", "keep-encoders", "encoders", tmp_path / "encoders.tar.xz")
    assert "1 of 4 encoders" in out.stdout
    records(tmp_path, "second", "restore", tmp_path / "encoders.tar.xz")
    weights = tmp_path / "second/encoder/small-2/seed2/checkpoint/model.safetensors"
    assert weights.read_text() == "checkpoint/model.safetensors"
    assert not (tmp_path / "second/encoder/small-1").exists()


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


@pytest.mark.parametrize("old", [False, True], ids=["this Python", "3.11.2"])
@pytest.mark.parametrize("name, kind", [
    ("../evil.json", tarfile.REGTYPE), ("/tmp/evil.json", tarfile.REGTYPE),
    ("evil.json", tarfile.SYMTYPE), ("evil.json", tarfile.FIFOTYPE)])
def test_an_archive_writes_nothing_elsewhere(tmp_path, monkeypatch, name, kind, old):
    if old: monkeypatch.delattr(tarfile, "data_filter", raising=False)
    path = tmp_path / "records.tar.xz"
    with tarfile.open(path, "w:xz") as tar:
        info = tarfile.TarInfo(name)
        info.type = kind
        info.linkname = "/etc/passwd"
        tar.addfile(info)
    try:
        with open_records(path) as root:
            assert name.startswith("/") # a leading slash may be dropped
            assert [p.name for p in root.rglob("*.json")] == ["evil.json"]
    except DataError as error: assert "records.tar.xz: " in str(error)
    assert not (tmp_path.parent / "evil.json").exists() and not Path("/tmp/evil.json").exists()


def test_an_older_python_unpacks_records_too(tmp_path, monkeypatch):
    "Debian 12 has Python 3.11.2, whose tarfile knows no filters."
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    first = fake_runs(tmp_path / "first", systems=("baseline",), seeds=1)
    save_records(collect(("small",), first), first, tmp_path / "records.tar.xz")
    with open_records(tmp_path / "records.tar.xz") as root:
        files = [p.relative_to(root) for p in root.rglob("*.json")]
        assert files and all((first / p).read_bytes() == (root / p).read_bytes() for p in files)


def test_what_is_there_is_left_as_it_is(tmp_path):
    fake_runs(tmp_path / "first", systems=("baseline",), seeds=1, model="e5")
    records(tmp_path, "first", "keep", "e5", tmp_path / "records.tar.xz")
    mine = tmp_path / "second/finetune/e5/baseline/seed0/metrics.json"
    mine.parent.mkdir(parents=True)
    mine.write_text("{}")
    records(tmp_path, "second", "restore", tmp_path / "records.tar.xz")
    assert mine.read_text() == "{}"
    assert (tmp_path / "second/evaluate/e5/baseline/seed0/metrics.json").is_file()


def report(folder, runs, seeds):
    "A folder with a report's files and the archive of its records."
    fake_runs(runs, systems=("baseline", "s2dm_sp-refined"), seeds=seeds)
    folder.mkdir()
    links = "".join(f' <a href="primary.{kind}">{kind}</a>' for kind in ("csv", "tex"))
    (folder / "report.html").write_text(f"{seeds} seeds{links}")
    for name in ("primary.csv", "table2.csv", "table2.md", "systems.md", "primary.tex",
                 "figure3.png", "figure3.pdf", "figure3.csv", "figure1.png"):
        (folder / name).write_text(f"{seeds}")
    save_records(collect(("small",), runs, "refined"), runs, folder / "records.tar.xz")
    return folder


def publish(*given):
    return subprocess.run(
        [sys.executable, ROOT / "workflow/publish.py", *given], capture_output=True, text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": ""})


def test_a_report_replaces_one_on_as_many_seeds_and_none_on_more(tmp_path):
    two = report(tmp_path / "two", tmp_path / "runs2", 2)
    three = report(tmp_path / "three", tmp_path / "runs3", 3)
    shown = tmp_path / "figures/small"
    assert publish(three, shown).returncode == 0
    kept = {"report.html", "primary.csv", "figure3.png", "records.tar.xz"}
    assert {p.name for p in shown.iterdir()} == kept | {"tables.md"}
    assert (shown / "tables.md").read_text() == (
        "# Tables of the report\n\n## Table 2\n\n3\n\n## Systems\n\n3\n")
    out = publish(two, shown)
    assert out.returncode == 1
    assert "small, baseline: 2 seeds instead of 3" in out.stderr
    assert (shown / "report.html").read_text() == '3 seeds <a href="primary.csv">csv</a>'
    (shown / "systems.md").write_text("shown somewhere")
    assert publish(two, shown, "--fewer-seeds").returncode == 0
    assert (shown / "systems.md").read_text() == (shown / "primary.csv").read_text() == "2"


def test_there_must_be_a_report(tmp_path):
    out = publish(tmp_path, tmp_path / "figures")
    assert out.returncode == 1 and "has no report.html" in out.stderr


def test_a_run_that_was_only_begun_is_restored_whole(tmp_path):
    "Its settings would be of two runs otherwise. A finished one stays as it is."
    first = fake_runs(tmp_path / "first", systems=("baseline",), seeds=2, model="e5")
    records(tmp_path, "first", "keep", "e5", tmp_path / "records.tar.xz")
    there = tmp_path / "second/finetune/e5/baseline"
    for seed, names in enumerate((("config.json",), ("config.json", "metrics.json"))):
        (there / f"seed{seed}").mkdir(parents=True)
        for name in names: (there / f"seed{seed}" / name).write_text("{}")
    records(tmp_path, "second", "restore", tmp_path / "records.tar.xz")
    for name in ("config.json", "metrics.json"):
        kept = (first / "finetune/e5/baseline/seed0" / name).read_text()
        assert (there / "seed0" / name).read_text() == kept
        assert (there / "seed1" / name).read_text() == "{}"


def test_no_archive_is_replaced_by_one_that_lacks_some_of_its_files(tmp_path):
    first = fake_runs(tmp_path / "first", systems=("baseline",), seeds=2, model="e5")
    archive = tmp_path / "records.tar.xz"
    records(tmp_path, "first", "keep", "e5", archive)
    before = archive.read_bytes()
    shutil.rmtree(first / "finetune/e5/baseline/seed1")
    with pytest.raises(subprocess.CalledProcessError) as stopped:
        records(tmp_path, "first", "keep", "e5", archive)
    assert "has 8 files that are not in" in stopped.value.stderr # predictions and their places, too
    assert "Traceback" not in stopped.value.stderr and archive.read_bytes() == before
