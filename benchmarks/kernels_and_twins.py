"""flash-linear-attention's kernels against PyTorch's path: outputs, tapped states, gradients and time. A phase of
`python -m benchmarks.on_gpu`.

Shape legend: G documents · H heads of q and k · J heads of v · K, V widths of a head.
"""

from __future__ import annotations

import dataclasses
import os
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from refine.ops.delta_rule import fla
from refine.ops.delta_rule import rule as delta_rule
from refine.ops.layout import Layout, Taps
from refine.ops.rms_norm import unit_length

BOUND = 2e-2  # relative difference that bfloat16 explains


class Case(NamedTuple):
    """Documents of `lengths` tokens, and the shape of one layer."""

    lengths: tuple[int, ...]
    heads: int
    value_heads: int
    key: int
    value: int
    gated: bool


CASES = {
    "plain, K 128": Case((1024, 1024), 16, 16, 128, 128, False),
    "plain, K 128, uneven": Case((65, 1, 1700), 16, 16, 128, 128, False),
    "plain, K 64, short": Case((40,), 2, 2, 64, 64, False),
    "gated, K 64": Case((700,), 2, 2, 64, 128, True),
    "gated, K 128": Case((1024, 1024), 16, 16, 128, 128, True),
    "gated, K 256, V 512": Case((1024,), 6, 6, 256, 512, True),
    "gated, K 128, grouped, uneven": Case((65, 1, 700), 2, 4, 128, 128, True),
}


def kernels(phase: Any) -> None:
    """Say how far the kernels are from PyTorch, and what a layer of 1.3B costs by each."""
    if phase.dry_run:
        stand_in = fla.Kernels(*[token_by_token] * len(dataclasses.fields(fla.Kernels)))
        fla.kernels = lambda: stand_in  # type: ignore[assignment]
        os.environ["REFINE_SEGMENTS"] = "apart"  # the functions in the kernels' place know no segments
    for name, case in CASES.items():
        shape = Case((37, 3), 2, 2 * (case.value_heads // case.heads), 8, 8, case.gated) if phase.dry_run else case
        if case.gated and not phase.dry_run and not fla.differentiates(phase.device, case.key):
            phase.say(f"kernels and twin: {name}", fallback="PyTorch computes the gradients")
            continue
        phase.attempt(f"kernels and twin: {name}", lambda c=shape: compared(c, phase.device))
    for tokens in (4096, 16384) if not phase.dry_run else (16,):
        shape = Case((tokens,), *((16, 16, 128, 128) if not phase.dry_run else (2, 2, 8, 8)), False)
        for way in ("kernels, together", "kernels, apart", "torch"):
            if not phase.dry_run:
                os.environ["REFINE_SEGMENTS"] = way.removeprefix("kernels, ") if way != "torch" else "together"
            run = _timed(shape, phase.device, way)
            what = "one layer of 1.3B, forward and backward"
            phase.attempt(what, lambda r=run: {"ms": phase.milliseconds(r, 3)}, tokens=tokens, by=way)


def inputs(case: Case, dtype: torch.dtype, device: torch.device) -> list[Tensor | None]:
    """q, k, v in `dtype`; beta, log decay (or None) and states in float32."""
    torch.manual_seed(sum(case.lengths))
    total, rows = sum(case.lengths), len(case.lengths)

    def new(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device)

    found = [unit_length(new(total, case.heads, case.key)) for _ in range(2)] + [
        new(total, case.value_heads, case.value),
        torch.rand(total, case.value_heads, device=device),
        -0.2 * torch.rand(total, case.value_heads, device=device),
        new(rows, case.value_heads, case.key, case.value) * case.key**-0.5,
    ]
    wide = [x.to(d).requires_grad_() for x, d in zip(found, [dtype] * 3 + [torch.float32] * 3, strict=True)]
    return [*wide[:4], wide[4] if case.gated else None, wide[5]]


def compared(case: Case, device: torch.device) -> dict[str, Any]:
    """Relative differences of output, tapped states and gradients: kernels in bfloat16, PyTorch in float32. Raises
    ArithmeticError: one is above BOUND."""
    given = inputs(case, torch.bfloat16, device)
    wide = [None if x is None else x.detach().float().requires_grad_() for x in given]
    taps = [(g, n) for g, length in enumerate(case.lengths) for n in sorted({1, length, (length + 1) // 2})]
    results = []
    for read, leaves in ((fla.read, given), (delta_rule.read, wide)):
        o, states = read(*leaves, Layout(case.lengths, device=device))  # type: ignore[arg-type]
        tapped = states.at(Taps(*zip(*taps, strict=True), device))
        torch.manual_seed(1)
        loss = (o.float() * torch.randn(o.shape, device=device)).sum()
        loss = loss + (tapped * torch.randn(tapped.shape, device=device)).sum()
        results.append((o, tapped, *torch.autograd.grad(loss, [x for x in leaves if x is not None])))
    names = ["dq", "dk", "dv", "dbeta", "dg", "dstate"]
    names = ["o", "states", *(name for name, x in zip(names, given, strict=True) if x is not None)]
    found = {name: float(f"{_distance(a, b):.1e}") for name, a, b in zip(names, *results, strict=True)}
    if not max(found.values()) < BOUND:
        raise ArithmeticError(f"a difference above {BOUND}: {found}")
    return found


def _distance(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm().clamp(min=1e-6))


def _timed(case: Case, device: torch.device, way: str) -> Any:
    """A function that reads, taps at eight places, and goes backward."""
    given = inputs(case, torch.bfloat16 if way != "torch" else torch.float32, device)
    layout, tokens = Layout(case.lengths, device=device), case.lengths[0]
    at = Taps([0] * 8, [(i + 1) * tokens // 8 for i in range(8)], device)
    read: Any = fla.read if way != "torch" else delta_rule.read

    def run() -> None:
        o, states = read(*given, layout)
        torch.autograd.grad(o.float().sum() + states.at(at).sum(), [x for x in given if x is not None])

    return run


def token_by_token(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = True,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """In the kernels' place on a CPU: what they compute, by the formula."""
    assert initial_state is not None
    repeat = v.shape[2] // q.shape[2]
    wide = [x.float() for x in (q.repeat_interleave(repeat, 2), k.repeat_interleave(repeat, 2), v, beta)]
    inputs = [*wide, g]
    bounds = [0, q.shape[1]] if cu_seqlens is None else cu_seqlens.tolist()
    outputs, last = [], []
    for row, (a, b) in enumerate(pairwise(bounds)):
        state = initial_state if cu_seqlens is None else initial_state[row : row + 1]
        o, states = delta_rule.token_by_token(*(None if x is None else x[:, a:b] for x in inputs), state)  # type: ignore[arg-type]
        outputs.append(o)
        last.append(states[:, -1])
    return torch.cat(outputs, 1).to(v.dtype), torch.cat(last)
