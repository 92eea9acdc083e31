"""Training in several processes: `torchrun` with failures in one line.

A failing process prints one line; torchrun prints no traceback after it.
`python -m refine.training.torchrun --standalone --nproc-per-node N -m MODULE ...`
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Sequence

PATIENCE = 10.0  # seconds within which torchrun, on a busy machine too, kills the other processes after a failure


def become(processes: int, arguments: Sequence[str]) -> None:
    """Replace this process by torchrun with `processes` processes of ``refine ARGUMENTS``.

    Returns if one process is enough, or if this process already runs under torchrun (ours or the user's own).
    """
    if processes == 1 or "RANK" in os.environ:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    # The process id stays the same, so torchrun still dies with the parent of this process, and its processes with it.
    torchrun = [sys.executable, "-m", "refine.training.torchrun", "--standalone", "--nproc-per-node", str(processes)]
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.execv(sys.executable, [*torchrun, "-m", "refine.cli.main", *arguments])


def is_first() -> bool:
    """Whether this process prints and writes results: the only process, or rank 0."""
    return os.environ.get("RANK", "0") == "0"


def wait_for_first_error(in_one_line: bool) -> None:
    """Called by a failing process. Sleeps so that torchrun kills it before it prints.

    `in_one_line`: the error is the user's. If every rank has it, only rank 0 prints: it does not wait. If one rank has
    it, the others may fail because that rank is gone: they wait longest, so only the rank that failed first prints.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or (in_one_line and os.environ["RANK"] == "0"):
        return
    time.sleep(PATIENCE / 2 if in_one_line else PATIENCE)


def run(arguments: Sequence[str]) -> None:
    """torchrun's command line. Exits with 1 if a process failed, or with 128 + N if signal N ended a process or this
    one."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    logging.disable(logging.ERROR)  # such as "closing signal SIGTERM"
    try:
        main(list(arguments))
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode >= 0:  # the process has printed its error
            sys.exit(1)
        name = signal.Signals(-failure.exitcode).name
        print(f"{name} ended training process {rank}; start the command again to resume", file=sys.stderr)
        sys.exit(128 - failure.exitcode)
    except SignalException as ended:
        sys.exit(128 + ended.sigval)


if __name__ == "__main__":
    run(sys.argv[1:])
