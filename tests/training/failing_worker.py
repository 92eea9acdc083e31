"""Run by torchrun in test_processes.py: one process of two that fail as the mode says, and are told of as the command
line tells of them. python failing_worker.py (all | one | killed)"""

from __future__ import annotations

import os
import signal
import sys

import torch.distributed as dist

from refine.cli import main
from refine.errors import TrainingError


def fail(**_: object) -> None:
    """In all processes, or in process 1 while process 0 waits for it."""
    dist.init_process_group("gloo")
    dist.barrier()
    if sys.argv[1] == "all":
        raise TrainingError("no room for anybody")
    if os.environ["RANK"] == "1" and sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ["RANK"] == "1":
        raise TrainingError("row 7 is odd")
    dist.barrier()


main.cli.main = fail  # type: ignore[method-assign]
main.main()
