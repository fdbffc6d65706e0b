"""Papermill, as the Snakefile calls it: run.py LOCK NOTEBOOK OUTPUT ... Four things are added. A
run waits for a process that still works in its folder, one that outlived a killed call, say. A
package is left out that compiles a grammar whenever it is imported: a second for each run, for a
check nobody asks for.
glibc keeps the memory that a training step frees for the next step: giving it back and asking for
it anew takes a twentieth of a step. And a kernel that has done all its cells is ended at once:
taking torch apart takes it another three seconds, and every run has saved its results by then."""
import os
import sys

from filelock import FileLock

for name, size in (("TRIM", 2**30), ("MMAP", 2**25)):
    # both, the second at most 2**25: one alone doubles the step
    os.environ.setdefault(f"MALLOC_{name}_THRESHOLD_", str(size))
sys.modules["rfc3987_syntax"] = None
from papermill.__main__ import papermill  # noqa: E402
from papermill.engines import NBClientEngine, papermill_engines  # noqa: E402


class Engine(NBClientEngine):
    @classmethod
    def execute_managed_notebook(cls, *args, **more):
        return super().execute_managed_notebook(*args, **more, shutdown_kernel="immediate")


papermill_engines.register(None, Engine) # the one that is taken if none is named
with FileLock(sys.argv.pop(1)): papermill()
