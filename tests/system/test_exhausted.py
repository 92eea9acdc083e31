"""Memory and disk space that are used up are recognised in the errors of every library. (In writers, commands and
validation: tests/hostile/test_values.py, tests/training/test_checkpoints.py.)"""

from __future__ import annotations

import errno

import pytest
import torch

from refine.system.exhausted import disk_error, is_full_disk, is_out_of_memory


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("shapes do not match"), False),
    ],
)
def test_running_out_of_memory_is_recognised(error, is_one):
    assert is_out_of_memory(error) is is_one


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "no room"), "No space left on device"),
        (PermissionError(errno.EACCES, "no"), "Permission denied"),
        (
            RuntimeError("[enforce fail at inline_container.cc:659]"),
            "the file could not be written (is the disk full?)",
        ),
        (RuntimeError("shapes do not match"), None),
    ],
)
def test_why_a_file_could_not_be_written(error, reason):
    assert disk_error(error) == reason


def test_a_full_disk_is_recognised_behind_another_error():
    assert is_full_disk(OSError(errno.ENOSPC, "no room")) and not is_full_disk(PermissionError(errno.EACCES, "no"))
    later = RuntimeError("could not write")
    later.__cause__ = OSError(errno.EDQUOT, "no room")
    assert is_full_disk(later) and not is_full_disk(None)
