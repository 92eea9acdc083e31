"""Small work on a CPU runs on one thread.

A second thread costs more than it brings where a product takes microseconds: the two meet after each operation, and the
one that waits slows the other on the core that they share.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALL = 1 << 25  # multiply-adds of a step; measured with rollouts: 8 rows of 1.8M parameters gain, 64 rows lose


@contextmanager
def one_thread_if_small(work: int, device: torch.device) -> Iterator[None]:
    """Inside, this Python thread's operations use one thread, if a step is at most SMALL multiply-adds on a CPU."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or work > SMALL or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
