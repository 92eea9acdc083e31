"""One command, several processes: torchrun on this machine, in place of the process that was asked to train."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def is_first() -> bool:
    """Whether this is the process that speaks and writes: the only one, or rank 0."""
    return os.environ.get("RANK", "0") == "0"


def become(processes: int, arguments: Sequence[str]) -> None:
    """Replace this process by torchrun with `processes` processes of ``refine ARGUMENTS``; returns where there is
    nothing to do: one process is wanted, or torchrun (this one, or the user's own over several machines) has begun."""
    if processes == 1 or "RANK" in os.environ:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    # The same process goes on as torchrun, so it still dies with its parent; its processes die with it.
    torchrun = [sys.executable, "-m", "refine.training.several", "--standalone", "--nproc-per-node", str(processes)]
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.execv(sys.executable, [*torchrun, "-m", "refine.cli.main", *arguments])
