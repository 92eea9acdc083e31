"""What a block keeps for its backward pass, and what its elementwise passes move: bytes a token, divided by width D.

    python -m benchmarks.saved_bytes

One block of the shapes of the published 1.3B models and of LaCT-760M, in bfloat16 autocast, on the CPU. Two lengths are
read, and their difference counted, so that parameters and their copies drop out. `torch`: PyTorch computes all.
`kernels`: as on a GPU, with stand-ins for fla's kernels, which keep what these keep and compute nothing. What the
kernels of the delta rule move themselves is not counted; what its elementwise steps in PyTorch move is.
"""

from __future__ import annotations

import contextlib
import gc
import os
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import click
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves

from refine.models import from_config
from refine.models.token_mixer import Keep
from refine.ops import made_again
from refine.ops.delta_rule import fla, passes
from refine.ops.layout import Layout

WIDTH = 256
LACT = {"model_type": "lact_swiglu", "num_attn_heads": 4, "num_lact_heads": 4, "inter_multi": 1}
LACT |= {"lact_chunk_size": 256, "window_size": 256}  # 4 tokens of a chunk for a channel of a head; published: 5.3
SHAPES: dict[str, dict[str, Any]] = {  # heads, widths and inner size stand to D as in the published models
    "DeltaNet": {"model_type": "delta_net", "num_heads": WIDTH // 128},
    "Gated DeltaNet": {"model_type": "gated_deltanet", "num_heads": 1, "head_dim": 192, "expand_v": 2.0},
    "LaCT": LACT | {"use_muon": False},
    "LaCT with Muon": LACT | {"use_muon": True},
}
WITH_KERNELS = ("DeltaNet", "Gated DeltaNet")
TOKENS = fla.EVERY, 2 * fla.EVERY
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linalg_solve_triangular")


def block_of(kind: str) -> nn.Module:
    """A block of `kind`, one of SHAPES."""
    more = {"hidden_size": WIDTH, "intermediate_size": 11 * WIDTH // 4, "num_hidden_layers": 1, "vocab_size": 8}
    return from_config({**SHAPES[kind], **more}).model.layers[0]


def read(block: nn.Module, tokens: int) -> Tensor:
    """The output of `block` for one document, under autocast; as at full width, nothing is too small."""
    x = torch.randn(tokens, WIDTH, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), mock.patch.object(made_again, "SMALL", 0):
        y: Tensor = block(x, Layout([tokens]), None, Keep.ALL)[0]
    return y


def held(block: nn.Module) -> float:
    """Bytes · D a token that live on after the forward pass, whoever keeps them; its input and output apart."""
    sizes = [_live_after(lambda n=n: read(block, n)) for n in TOKENS]
    ends = 2 * 4  # the block's input and output, float32
    return (sizes[1] - sizes[0]) / (TOKENS[1] - TOKENS[0]) / WIDTH - ends


def _live_after(run: Callable[[], Any]) -> int:
    """Bytes allocated during `run` and not freed, while its result lives. Python's collector waits meanwhile: what it
    frees of earlier runs would count as freed in this one."""
    gc.collect()
    gc.disable()
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
            result = run()
    finally:
        gc.enable()
    events = profiled.profiler.kineto_results.events()  # type: ignore[union-attr]
    assert result is not None
    return sum(e.nbytes() for e in events if e.name() == "[memory]")


def by_line(block: nn.Module) -> Counter[str]:
    """Bytes · D a token that autograd saved, of distinct tensors, by the line of the package that saved them first."""
    counts = [_saved(lambda n=n: read(block, n)) for n in TOKENS]
    counts[1].subtract(counts[0])
    return Counter({line: size / (TOKENS[1] - TOKENS[0]) / WIDTH for line, size in counts[1].items() if size})


def _saved(run: Callable[[], Any]) -> Counter[str]:
    sizes: Counter[str] = Counter()
    kept: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in kept:
            kept[storage.data_ptr()] = x
            sizes[_line()] += storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = run()
    assert result is not None
    return sizes


def _line() -> str:
    """Where in the package: file, function."""
    frames = [f for f in traceback.extract_stack() if "/refine/" in f.filename and "without_graph" not in f.filename]
    return f"{'/'.join(Path(frames[-1].filename).parts[-2:])} {frames[-1].name}: {frames[-1].line}"


class _Traffic(TorchDispatchMode):
    """Bytes that operations other than products read and write, views apart."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        given, made = ([x for x in tree_leaves(y) if isinstance(x, Tensor)] for y in ((args, kwargs), result))
        starts = {x.untyped_storage().data_ptr() for x in given}
        view = all(x.untyped_storage().data_ptr() in starts for x in made) and not name.endswith(("_", "out"))
        if (
            name not in PRODUCTS
            and not name.startswith("empty")
            and not (view and function._schema.name != "aten::copy_")
        ):
            self.bytes[name] += sum(x.numel() * x.element_size() for x in (*given, *made))
        return result


def traffic(block: nn.Module) -> tuple[float, float]:
    """Bytes · D a token that elementwise operations move in the forward pass, and in the backward pass."""
    found = []
    for tokens in TOKENS:
        with _Traffic() as forward:
            y = read(block, tokens)
        block.zero_grad()  # else the second length adds to the first's
        d = torch.randn_like(y)
        with _Traffic() as backward:
            y.backward(d)
        found.append((sum(forward.bytes.values()), sum(backward.bytes.values())))
    first, second = ((b - a) / (TOKENS[1] - TOKENS[0]) / WIDTH for a, b in zip(*found, strict=True))
    return first, second


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """In the block, fla's kernels are chosen on the CPU, and their stand-ins called, for each segment apart."""
    rule = fla.Kernels(*[_rule] * 6)
    with (
        mock.patch.dict(os.environ, {"REFINE_SEGMENTS": "apart"}),
        mock.patch.object(fla, "chosen", lambda device, dtype: dtype.itemsize == 2),
        mock.patch.object(fla, "differentiates", lambda *_: True),
        mock.patch.object(fla, "kernels", lambda: rule),
        mock.patch.object(passes, "functions", lambda: AROUND),
        mock.patch.object(passes, "present", lambda x: x.element_size() == 2),
    ):
        yield


class _Keeps(torch.autograd.Function):
    """Keeps `kept` and the first `saved` inputs, and returns `results`, with gradients of any value.

    A fused pass reads its inputs and writes its results, once forward; backward it reads what it kept and the
    gradients, and writes those of its inputs. That is counted, but not for the kernels of the rule (`one_pass` False).
    """

    @staticmethod
    def forward(
        ctx: Any, kept: list[Tensor], results: list[Tensor], saved: int, one_pass: bool, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*inputs[:saved], *kept)
        ctx.given, ctx.one_pass = [(x.shape, x.dtype) for x in inputs], one_pass
        if one_pass:
            _moves(*inputs, *results)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        found = [torch.empty(shape, dtype=dtype) for shape, dtype in ctx.given]
        if ctx.one_pass:
            _moves(*ctx.saved_tensors, *gradients, *found)
        return None, None, None, None, *found


def _moves(*tensors: Tensor) -> None:
    mode = _get_current_dispatch_mode()
    if isinstance(mode, _Traffic):
        mode.bytes["fused"] += sum(x.numel() * x.element_size() for x in tensors)


def _rule(**given: Any) -> tuple[Tensor, Tensor]:
    """The chunked kernels keep q, k, v, beta, A [B, T, J, 64] and the state; with a decay, its sums."""
    inputs = [given[name] for name in ("q", "k", "v", "beta", "initial_state", "g") if name in given]
    v, state = given["v"], given["initial_state"]
    results = [torch.empty_like(v), torch.empty_like(state)]
    o, after = _Keeps.apply([v.new_empty(*v.shape[:3], 64)], results, len(inputs), False, *inputs)
    return o, after


def _pass(*inputs: Tensor) -> Tensor:
    """A pass that keeps its inputs; the result is like the first."""
    return _Keeps.apply([], [torch.empty_like(inputs[0])], len(inputs), True, *inputs)[0]  # type: ignore[no-any-return]


def _unit_length(x: Tensor, eps: float) -> Tensor:
    y = torch.empty_like(x)
    kept = [y, x.new_empty(x.shape[:-1], dtype=torch.float32)]
    return _Keeps.apply(kept, [y], 0, True, x)[0]  # type: ignore[no-any-return]


AROUND = passes.Fused(
    convolution=lambda x, weight, activation: _pass(x, weight),
    unit_length=_unit_length,
    norm=lambda x, weight, bias, eps: _pass(x, weight),
    gated_norm=lambda x, gate, weight, bias, activation, eps: _pass(x, gate, weight),
    swiglu=_pass,
)


@click.command()
@click.option("--lines", is_flag=True, help="Also each line that keeps something.")
def main(lines: bool) -> None:
    """Print the tables."""
    print("| block | computed by | kept | moved forward | moved backward |\n|---|---|---:|---:|---:|")
    for kind in SHAPES:
        block = block_of(kind)
        for by, chosen in (("torch", contextlib.nullcontext), ("kernels", stand_ins)):
            if by == "kernels" and kind not in WITH_KERNELS:
                continue
            with chosen():
                kept, (forward, backward) = held(block), traffic(block)
                print(f"| {kind} | {by} | {kept:.1f} | {forward:.0f} | {backward:.0f} |")
                if lines:
                    for line, size in by_line(block).most_common():
                        print(f"  {size:5.2f}  {line}")


if __name__ == "__main__":
    main()
