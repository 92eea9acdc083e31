"""Runs a service for the supervisor, and ends all of it at its own end:
`python -m refine.services.supervised_program COMMAND`.

Servers start processes of their own. Whatever ends the supervisor or this process, SIGKILL included, the whole family
of the command is ended too (see `refine.system.processes`).
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def main(command: list[str]) -> int:
    """Run `command` until it ends, or the supervisor is gone, or SIGTERM comes. Returns its exit code."""
    from refine.system.processes import PARENT_VARIABLE, ProcessFailed, die_with_parent, run_in_own_process

    os.environ[PARENT_VARIABLE] = str(os.getppid())
    die_with_parent()
    signal.signal(signal.SIGTERM, _stop)
    try:
        run_in_own_process(command, echo=lambda line: print(line, flush=True))
    except ProcessFailed as error:
        return error.returncode if error.returncode > 0 else 1
    return 0


def _stop(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
