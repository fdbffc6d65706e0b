"""Train the embedded encoder anew, from generated text, and put it into the package.

    python workflow/encoder.py

About half an hour on one core; stopped, it goes on where it was. A finished training is thrown away
and begun anew. The encoder in s2dm/embedded/ and its table and curve in figures/small/ are replaced
at the end only.
"""
import shutil
import subprocess
import sys
from pathlib import Path

from s2dm.core import figures_dir, project_root, runs_dir


def train(root, finished):
    "The run 02_encoder."
    notebook = runs_dir() / "02_encoder.ipynb"
    notebook.parent.mkdir(parents=True, exist_ok=True)
    papermill = Path(sys.executable).with_name("papermill")
    subprocess.run(
        [papermill, "--log-output", "--no-progress-bar", root / "nbs/02_encoder.ipynb", notebook,
         "-p", "name", "small", "-p", "fresh", str(finished)], check=True)


def install(root, run):
    "Put encoder and record into the package, table and curve into figures/."
    package = root / "s2dm/embedded"
    new = root / "s2dm/embedded.new"
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(run / "checkpoint", new)
    shutil.copy(run / "config.json", new / "run.json")
    shutil.rmtree(package, ignore_errors=True)
    new.rename(package)
    for name in ("encoder_small.csv", "encoder_small_curves.png"):
        shutil.copy(figures_dir() / name, root / "figures/small" / name)


def main():
    root = project_root()
    if root is None: sys.exit("this is no checkout of s2dm: run it in one")
    run = runs_dir() / "encoder/small/seed0"
    train(root, (run / "metrics.json").is_file())
    install(root, run)


if __name__ == "__main__": main()
