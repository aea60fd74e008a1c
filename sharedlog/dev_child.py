"""Runs a module as a child that never outlives its parent.

    python -m sharedlog.dev_child MODULE ARGUMENT...

The parent (`sharedlog/dev_cluster.py`) keeps the write end of this process's standard input open
and writes nothing. End of file means that the parent is gone, by whatever death, and the process
kills itself: a store survives that by design, and a forgotten node holds ports and locks.

A pipe rather than `prctl(PR_SET_PDEATHSIG)`: that one fires when the parent's *thread* ends, needs
a hook between fork and exec, and exists on Linux alone. A child that is stopped (SIGSTOP) when the
parent dies can't read; it is in a process group of its own, which becomes orphaned at that moment,
so the kernel continues it with SIGHUP, which ends it.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading

STDIN = 0


def _die_with_parent() -> None:
    while os.read(STDIN, 4096):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Watch standard input from a thread, then become the module named by the first argument."""
    module = sys.argv[1]
    sys.argv = [module, *sys.argv[2:]]
    threading.Thread(target=_die_with_parent, name="die-with-parent", daemon=True).start()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
