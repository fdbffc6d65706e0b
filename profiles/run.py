"""Papermill, as the Snakefile calls it: run.py LOCK NOTEBOOK OUTPUT ... Two things are added. A run waits for a process that still works in its folder, one
that outlived a killed call, say. And a package is left out that compiles a grammar whenever it is imported: a second for each run, for a check nobody asks for."""
import sys

from filelock import FileLock

sys.modules["rfc3987_syntax"] = None
from papermill.__main__ import papermill  # noqa: E402

with FileLock(sys.argv.pop(1)): papermill()
