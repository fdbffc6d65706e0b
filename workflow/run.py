"""A run: one notebook, executed by papermill. The Snakefile calls it for each of its rules.

    python workflow/run.py --log LOG [--figures FOLDER] [--no-gpu] [--alike RECORDS]
        NOTEBOOK OUTPUT -p name value ...

All that the notebook prints goes to LOG. A run that fails says which notebook failed, where it lies
and how it goes on.

Systems with one seed are compared, so all of them are to be trained in one precision, on whatever
machine: RECORDS, a pattern of files, are those of the runs that are there. A run takes the
precision that they name, unless it was told one.

Four things are done for the machine's sake. A run waits for a process that still works in its
folder, one that outlived a killed call, say. A package is left out that compiles a grammar whenever
it is imported, a second for each run, for a check nobody asks for. glibc keeps the memory that a
training step frees for the next step, which saves a twentieth of it. And a kernel that has done all
its cells is ended at once: taking torch apart takes three seconds, and by then all is saved.
"""
import argparse
import json
import os
import sys
from collections import deque
from glob import glob
from pathlib import Path

from filelock import FileLock

SHOWN = 25 # lines of the log, if a run fails


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--log", type=Path, required=True, help="file for all that is printed")
    parser.add_argument("--figures", help="folder for figures and tables (S2DM_FIGURES)")
    parser.add_argument("--no-gpu", action="store_true", help="compute on the CPU")
    parser.add_argument("--alike", help="pattern of metrics.json: train in their precision")
    parser.add_argument("notebook")
    parser.add_argument("output", help="the executed notebook")
    return parser.parse_known_args()


def prepare(given):
    "Settings of the process, and so of the kernel."
    if given.figures: os.environ["S2DM_FIGURES"] = given.figures
    if given.no_gpu: os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # both, the second at most 2**25: one alone doubles the step
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**30))
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**25))
    sys.modules["rfc3987_syntax"] = None


def precision_of(records): # as parameters; none if no run names one
    said = {json.loads(Path(file).read_text(encoding="utf-8")).get("precision")
            for file in glob(records)} - {None}
    if len(said) > 1: print(f"NOTE: {records} are of {len(said)} precisions: {sorted(said)}")
    return ["-p", "precision", *said] if len(said) == 1 else []


def execute(notebook, output, more):
    "Papermill's own command line; raises what the notebook raised."
    from papermill.__main__ import papermill
    from papermill.engines import NBClientEngine, papermill_engines

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, *args, **options):
            options["shutdown_kernel"] = "immediate"
            return super().execute_managed_notebook(*args, **options)

    papermill_engines.register(None, Engine) # the one that is taken if none is named
    options = ["--log-output", "--no-progress-bar"]
    papermill([*options, notebook, output, *more], standalone_mode=False)


def main():
    given, more = arguments()
    prepare(given)
    given.log.parent.mkdir(parents=True, exist_ok=True)
    terminal = os.dup(2)
    lock = FileLock(f"{given.log}.lock").acquire() # whose log it is, before it is emptied
    with open(given.log, "w", encoding="utf-8") as log:
        for stream in (1, 2): os.dup2(log.fileno(), stream)
    try:
        if given.alike and "precision" not in more: more += precision_of(given.alike)
        with lock: execute(given.notebook, given.output, more)
    except Exception:
        import traceback
        traceback.print_exc()
        sys.stderr.flush()
        with open(given.log, encoding="utf-8", errors="replace") as log:
            last = deque(log, SHOWN)
        os.dup2(terminal, 2)
        print("", *(line.rstrip("\n") for line in last), "", sep="\n", file=sys.stderr)
        print(f"FAILED: {given.notebook} {' '.join(more)}\n"
              f"It lies, with its traceback, in {given.output}; what it printed, in {given.log}.\n"
              "Once the cause is gone, the same command goes on where it stopped.\n",
              file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__": main()
