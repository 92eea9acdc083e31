"""How many configurations of flash-linear-attention's kernels are compiled and tried before the first use of a shape.

fla declares up to about a hundred for a kernel (blocks, warps, pipeline stages), and Triton compiles and times each
for each shape of a layer. Here Triton's autotuners of the kernels in use get at most FEW of them: those nearest to
what such kernels usually run best with, and the smallest, which fits into every GPU's shared memory. Nobody has timed
the choice on a GPU yet. No result depends on it, beyond the order in which a product is summed.

`REFINE_TUNING` = "all" leaves every configuration to be tried. fla's own files of configurations ($FLA_CACHE_MODE,
$FLA_CONFIG_DIR) come first in either case.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from refine.errors import SettingError

log = logging.getLogger(__name__)
FEW = 8
WARPS, STAGES = 4, 3  # the usual best of matrix products on blocks of 64
PACKAGES = ("delta_rule", "gated_delta_rule", "kda", "gla", "common", "utils")  # of fla.ops, that the kernels call


def tries_few() -> bool:
    """Whether only a few configurations are tried. Raises SettingError for an unknown REFINE_TUNING."""
    wish = os.environ.get("REFINE_TUNING", "few")
    if wish not in ("few", "all"):
        raise SettingError(f"REFINE_TUNING is {wish!r}: expected few or all")
    return wish == "few"


def restrict() -> tuple[int, int]:
    """Give the autotuners of the imported kernels their few configurations: how many there were, and are. Says it once:
    afterwards both are the same."""
    if not tries_few():
        return 0, 0
    before = after = 0
    for tuner in tuners():
        before += len(tuner.configs)
        tuner.configs = few(tuner.configs)
        after += len(tuner.configs)
    if after < before:
        log.info(
            "flash-linear-attention's kernels: %d of %d configurations are tried (REFINE_TUNING=all: every one)",
            after,
            before,
        )
    return before, after


def tuners() -> Iterator[Any]:
    """Triton's autotuner of every kernel in the PACKAGES of fla.ops that are imported."""
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import KernelInterface

    seen: set[int] = set()
    packages = tuple(f"fla.ops.{name}." for name in PACKAGES)
    for name, module in sorted(sys.modules.items()):
        for kernel in list(vars(module).values()) if f"{name}.".startswith(packages) else ():
            while isinstance(kernel, KernelInterface):  # also a subclass of fla's own
                if isinstance(kernel, Autotuner) and id(kernel) not in seen:
                    seen.add(id(kernel))
                    yield kernel
                kernel = getattr(kernel, "fn", None)


def few(configs: Sequence[Any]) -> list[Any]:
    """At most FEW of Triton's `configs`, in their order: the likeliest, and the smallest."""
    if len(configs) <= FEW:
        return list(configs)
    smallest = min(range(len(configs)), key=lambda i: _size(configs[i]))
    likeliest = sorted((i for i in range(len(configs)) if i != smallest), key=lambda i: _distance(configs[i], configs))
    return [configs[i] for i in sorted([smallest, *likeliest[: FEW - 1]])]


def _blocks(config: Any) -> dict[str, int]:
    return {name: n for name, n in config.kwargs.items() if isinstance(n, int) and not isinstance(n, bool) and n > 0}


def _size(config: Any) -> tuple[int, int, int]:
    """By shared memory, then registers."""
    return math.prod(_blocks(config).values()), config.num_stages, -config.num_warps


def _distance(config: Any, configs: Sequence[Any]) -> float:
    """How far from the usual best: halved or doubled warps, a stage, or blocks smaller than the largest there are."""
    largest = {name: max(_blocks(other).get(name, 1) for other in configs) for name in _blocks(config)}
    smaller = sum(math.log2(min(largest[name], 64) / min(n, 64)) for name, n in _blocks(config).items())
    larger = sum(math.log2(max(n, 64) / 64) for n in _blocks(config).values())
    return abs(math.log2(config.num_warps / WARPS)) + abs(config.num_stages - STAGES) / 2 + smaller + larger
