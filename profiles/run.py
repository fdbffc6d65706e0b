"""Papermill, as the Snakefile calls it: run.py LOCK NOTEBOOK OUTPUT ... Three things are added. A run waits for a process that still works in its folder, one
that outlived a killed call, say. A package is left out that compiles a grammar whenever it is imported: a second for each run, for a check nobody asks for. And
glibc keeps the memory that a training step frees for the next step: giving it back and asking for it anew takes a twentieth of a step."""
import os
import sys

from filelock import FileLock

for name, size in (("TRIM", 2**30), ("MMAP", 2**25)): os.environ.setdefault(f"MALLOC_{name}_THRESHOLD_", str(size)) # both, the second at most 2**25: one alone doubles the step
sys.modules["rfc3987_syntax"] = None
from papermill.__main__ import papermill  # noqa: E402

with FileLock(sys.argv.pop(1)): papermill()
