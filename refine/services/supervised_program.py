"""Runs one service under supervisord: `python -m refine.services.supervised_program COMMAND`.

Servers start processes of their own. When the supervisor or this process ends, even by SIGKILL, the command and all
its processes end too (see `refine.system.processes`).
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from refine.system.processes import PARENT_VARIABLE, ProcessFailed, die_with_parent, run_in_own_process


def main(command: list[str]) -> int:
    """Run `command` until it ends, the supervisor ends, or SIGTERM comes. Returns its exit code."""
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
