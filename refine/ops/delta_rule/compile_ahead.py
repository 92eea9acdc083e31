"""Compile the kernels of the delta rule before they are needed, shared out over processes.

Triton compiles a kernel when it first runs, on one core, and fla's autotuners ask for about 100 configurations for each
shape of a layer: minutes in which the GPU does nothing. Here every process goes through the same calls without
launching anything, and compiles its share of the configurations into Triton's cache on disk ($TRITON_CACHE_DIR).
Afterwards a training only tries the compiled configurations out.

    python -m refine.ops.delta_rule.compile_ahead '[[16, 16, 128, 128, false]]' RANK RANKS
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch

from refine.errors import reason
from refine.ops.delta_rule import fla, passes
from refine.ops.layout import Layout, Taps

# of documents: chunked kernels, packed or not; several segments at once; recurrent kernels
LENGTHS = ((fla.EVERY,), (fla.EVERY, 130), (2 * fla.EVERY,), (5,), (5, 3))


class Shape(NamedTuple):
    """A layer: heads of q and k, heads of v, widths of a key and a value, and whether it has a decay, for each key
    channel if `channels`."""

    heads: int
    value_heads: int
    key: int
    value: int
    gated: bool
    channels: bool = False


class Share:
    """What one process compiles: each `ranks`-th configuration, from `rank` on."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank, self.ranks = rank, ranks
        self.met = self.compiled = 0
        self.failed: list[str] = []

    def compile(self, name: str, run: Callable[[], Any]) -> None:
        """`run` compiles one configuration of kernel `name`. Autotuning, too, leaves out one that does not compile."""
        self.met += 1
        if (self.met - 1) % self.ranks != self.rank:
            return
        try:
            run()
            self.compiled += 1
        except Exception as error:
            self.failed.append(f"{name}: {type(error).__name__} {reason(error, 120)}")


@contextlib.contextmanager
def nothing_is_launched(share: Share) -> Iterator[None]:
    """In the block each call of a Triton kernel compiles its configurations of `share`, and launches none."""
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import JITFunction

    run, tuned, seen = JITFunction.run, Autotuner.run, set()

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        share.compile(self.__name__, lambda: run(self, *args, grid=grid, warmup=True, **kwargs))

    def each_configuration(self: Any, *args: Any, **kwargs: Any) -> None:
        self.nargs = dict(zip(self.arg_names, args, strict=False))
        values = {**self.nargs, **kwargs}
        kinds = (str(getattr(x, "dtype", x is None)) for x in values.values())
        key = (self.base_fn.__name__, *(str(values.get(name)) for name in self.keys), *kinds)
        if key not in seen:
            seen.add(key)
            for config in self.prune_configs(kwargs):
                self.fn.run(*args, **kwargs, **config.all_kwargs())

    JITFunction.run, Autotuner.run = compile_only, each_configuration
    try:
        yield
    finally:
        JITFunction.run, Autotuner.run = run, tuned


def compile_share(shapes: Sequence[Shape], share: Share, device: torch.device) -> None:
    """Read, tap and go backward with layers of `shapes` on `device`, and make the passes around, without launching a
    kernel."""
    fla.kernels()
    passes.functions()
    with nothing_is_launched(share):
        for shape in shapes:
            for lengths in LENGTHS:
                _read(shape, lengths, device)
            passes.call_all(shape.heads, shape.value_heads, shape.key, shape.value, device)


def _read(shape: Shape, lengths: Sequence[int], device: torch.device) -> None:
    total, bfloat16 = sum(lengths), torch.bfloat16

    def new(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.zeros(*size, dtype=dtype, device=device, requires_grad=True)

    gradient = not shape.gated or fla.differentiates(device, shape.key, shape.channels)
    decay = (total, shape.value_heads, shape.key) if shape.channels else (total, shape.value_heads)
    given = [
        new(total, shape.heads, shape.key, dtype=bfloat16),
        new(total, shape.heads, shape.key, dtype=bfloat16),
        new(total, shape.value_heads, shape.value, dtype=bfloat16),
        new(total, shape.value_heads),
        new(*decay) if shape.gated else None,
        new(len(lengths), shape.value_heads, shape.key, shape.value),
    ]
    layout, read = Layout(lengths, device=device), cast(Any, fla.read)
    with torch.set_grad_enabled(gradient):
        o, states = read(*given, layout)
        if gradient:
            tapped = states.at(Taps([0], [max(1, lengths[0] - 1)], device))
            (o.float().sum() + tapped.sum()).backward()
    with torch.no_grad():
        read(*given, layout)


def main(shapes: str, rank: str, ranks: str) -> None:
    """Compile a share and print what came of it, as JSON."""
    share = Share(int(rank), int(ranks))
    compile_share([Shape(*one) for one in json.loads(shapes)], share, torch.device("cuda"))
    print(json.dumps({"compiled": share.compiled, "failed": share.failed}))


if __name__ == "__main__":
    main(*sys.argv[1:])
