"""Which needle keys, needle values and invented names are kept for the recall exercises that the shipped models were
trained on: half of each, told by a checksum of the text. No test ever draws them, whatever its seed, so that what a
model recalls in a test it cannot have seen in training."""

from __future__ import annotations

from zlib import crc32


def for_exercises(text: str) -> bool:
    """Whether `text` (a key, a value, a name) is for exercises alone; the other half is for tests alone."""
    return crc32(text.encode()) % 2 == 0
