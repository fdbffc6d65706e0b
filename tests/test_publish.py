"""What is shown in figures/ is replaced by one command, and never by a report on fewer seeds."""
import subprocess
import sys

from conftest import ROOT
from fake_runs import fake_runs

from s2dm.results import collect, save_records


def report(folder, runs, seeds):
    "A folder with a report's files and the archive of its records."
    fake_runs(runs, systems=("baseline", "s2dm_sp-refined"), seeds=seeds)
    folder.mkdir()
    (folder / "report.html").write_text(f"{seeds} seeds")
    for name in ("table2.csv", "systems.md", "table2.tex", "figure3.png", "figure3.pdf"):
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
    kept = {"report.html", "table2.csv", "figure3.png", "records.tar.xz"}
    assert {p.name for p in shown.iterdir()} == kept
    out = publish(two, shown)
    assert out.returncode == 1
    assert "small, baseline: 2 seeds instead of 3" in out.stderr
    assert (shown / "report.html").read_text() == "3 seeds"
    (shown / "systems.md").write_text("shown somewhere")
    assert publish(two, shown, "--fewer-seeds").returncode == 0
    assert (shown / "systems.md").read_text() == (shown / "table2.csv").read_text() == "2"


def test_there_must_be_a_report(tmp_path):
    out = publish(tmp_path, tmp_path / "figures")
    assert out.returncode == 1 and "has no report.html" in out.stderr
