"""torchrun whose failures are told in one line: what the process at fault said is enough, and no traceback of the
launcher's comes after it. `python -m refine.training.torchrun --standalone --nproc-per-node N -m MODULE ...`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Sequence

PATIENCE = 10.0  # seconds that a failed process has to end, and torchrun to end the others: on a busy machine, too


def run(arguments: Sequence[str]) -> None:
    """torchrun's command line. Exits with 1 where a process failed (it said why), with 128 + the number of a signal
    that ended one, or this process itself."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    logging.disable(logging.ERROR)  # "closing signal SIGTERM", and the like
    try:
        main(list(arguments))
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode >= 0:
            sys.exit(1)
        name = signal.Signals(-failure.exitcode).name
        print(f"training process {rank} was ended by {name}; started again, the run resumes", file=sys.stderr)
        sys.exit(128 - failure.exitcode)
    except SignalException as ended:
        sys.exit(128 + ended.sigval)


def let_others_speak(told: bool) -> None:
    """Wait, in one of several processes that has failed, so that torchrun ends it where another is the one to speak:
    process 0 for an error that all have (`told` in a line), the one at fault where others only miss its answers."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or (told and os.environ["RANK"] == "0"):
        return
    time.sleep(PATIENCE / 2 if told else PATIENCE)


if __name__ == "__main__":
    run(sys.argv[1:])


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
    torchrun = [sys.executable, "-m", "refine.training.torchrun", "--standalone", "--nproc-per-node", str(processes)]
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.execv(sys.executable, [*torchrun, "-m", "refine.cli.main", *arguments])
