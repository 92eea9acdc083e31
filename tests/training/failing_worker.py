"""Run by torchrun in test_torchrun.py: one of two processes, of which all or one fail, under the command's error
handling. python failing_worker.py (all | one | killed)"""

from __future__ import annotations

import os
import signal
import sys

import torch.distributed as dist

from refine.cli import main
from refine.errors import TrainingError


def fail(**_: object) -> None:
    """Fail in all processes, or only in process 1 while process 0 waits for it."""
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
