"""Random numbers that depend only on a seed and counters.

Shape legend: R seeds.

SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): each number is a finaliser applied to the seed advanced by the counters.
There is no state, so a row's numbers are the same at every place of a batch and on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit number
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB


def mix(seeds: Tensor, *counters: Tensor | int) -> Tensor:
    """seeds [R] int64 and counters (numbers, or tensors that broadcast with them) -> [R] int64 seeds, independent."""
    mixed = _finalise(seeds + _GOLDEN)
    for counter in counters:
        # a number stays on the host: as a tensor it would be a copy to the device
        step = (counter + 1) * _GOLDEN if isinstance(counter, Tensor) else _signed((counter + 1) * _GOLDEN)
        mixed = _finalise(mixed + step)
    return mixed


def uniform(seeds: Tensor, *counters: Tensor | int) -> Tensor:
    """seeds [R] int64 and counters -> [R] float64, uniform in [0, 1): one number for each seed and set of counters."""
    return _shift(mix(seeds, *counters), 11).to(torch.float64) * 2.0**-53


def _signed(number: int) -> int:
    """`number` as int64 arithmetic wraps it."""
    return (number + 2**63) % 2**64 - 2**63


def _finalise(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """x >> bits with zeros coming in (torch's shift of int64 carries the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
