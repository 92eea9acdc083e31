"""All segments of a read in one call of flash-linear-attention's kernels. With `fla`, the only file that imports them.

Shape legend: N tokens of all documents · X segments of all documents · G documents
              H heads of q and k · J heads of v · K, V widths of a head.

A kernel's call is about six launches forward and twelve backward, and all but one of each work on every chunk of 64
tokens by itself. Only the pass over the states goes from chunk to chunk (`chunk_gated_delta_rule_fwd_h`, backward
`chunk_gated_delta_rule_bwd_dhu`). So segments are given to fla as if they were documents, all at once, and that pass
runs step by step: a step's segments start from the states at the end of the step before. Backward, the passes over the
states start from states that are known by then, at once; the pass over their gradients runs from the last step to the
first, and adds the gradients of tapped states where a segment starts.

fla's own functions call that pass by name, in three modules. Here those names are replaced, once, by functions that do
the same unless a read of segments is under way in their thread. A read that did not go through them is an error.
`REFINE_SEGMENTS` = "apart" makes `fla.read` call the kernels once for each step instead: the twin.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from refine.errors import SettingError
from refine.ops.autocast import own_precision
from refine.ops.delta_rule.segments import Step, Steps

log = logging.getLogger(__name__)
FORWARD, BACKWARD = "chunk_gated_delta_rule_fwd_h", "chunk_gated_delta_rule_bwd_dhu"
PER_TOKEN = ("q", "k", "w", "u", "g", "gk", "do", "dv")  # what that pass is given of each token, [1, N, ...]
CALLERS = {  # decay -> fla's modules and functions, forward and backward
    "none": (("delta_rule.chunk", "chunk_delta_rule_fwd"), ("delta_rule.chunk", "chunk_delta_rule_bwd")),
    "head": (
        ("gated_delta_rule.chunk", "chunk_gated_delta_rule_fwd"),
        ("gated_delta_rule.chunk", "chunk_gated_delta_rule_bwd"),
    ),
    "channel": (("kda.chunk_fwd", "chunk_kda_fwd"), ("kda.chunk_bwd", "chunk_kda_bwd")),
}


def wanted() -> bool:
    """Whether reads of several segments call the kernels once. Raises SettingError for an unknown REFINE_SEGMENTS."""
    return _wanted(os.environ.get("REFINE_SEGMENTS", "together"))


@functools.cache
def _wanted(wish: str) -> bool:
    if wish not in ("together", "apart"):
        raise SettingError(f"REFINE_SEGMENTS is {wish!r}: expected together or apart")
    if wish == "together" and (reason := _unknown()):
        log.warning("delta rule: one call of the kernels for each segment, which is slower, because %s", reason)
        return False
    return wish == "together"


def _unknown() -> str | None:
    """What this fla has not, of the functions that are called and replaced here; None if it has all."""
    needed = {"initial_state", "cu_seqlens", "chunk_indices"}
    for pair in CALLERS.values():
        for (place, name), replaced in zip(pair, (FORWARD, BACKWARD), strict=True):
            module = importlib.import_module(f"fla.ops.{place}")
            if not (hasattr(module, name) and hasattr(module, replaced)):
                return f"fla.ops.{place} has no {name} that calls {replaced}"
            if missing := needed - set(inspect.signature(getattr(module, name)).parameters):
                return f"fla.ops.{place}.{name} takes no {', '.join(sorted(missing))}"
    return None


@functools.cache
def _functions(decay: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """fla's functions forward and backward, which ask the read under way for the pass over the states."""
    found = []
    for place, name in CALLERS[decay]:
        module = importlib.import_module(f"fla.ops.{place}")
        for replaced in (FORWARD, BACKWARD):
            original = getattr(module, replaced, None)
            if original is not None and not hasattr(original, "asks"):
                setattr(module, replaced, _asking(original, replaced))
        found.append(getattr(module, name))
    return found[0], found[1]


def _asking(original: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(original)
    def run(*args: Any, **given: Any) -> Any:
        under_way: StatePass | None = getattr(_local, "under_way", None)
        if under_way is None:
            return original(*args, **given)
        return (under_way.forward if name == FORWARD else under_way.backward)(original, *args, **given)

    run.asks = True  # type: ignore[attr-defined]
    return run


class StatePass:
    """The passes over the states of one read, and over their gradients, step by step."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.starts: list[Tensor] = []  # of each step, after the forward pass
        self.done: set[str] = set()

    def forward(self, run: Callable[..., Any], **given: Any) -> tuple[Tensor, Tensor, Tensor]:
        """`run`: fla's function; `given`: what it is given for all segments, and the states of the first step's."""
        if not given["output_final_state"]:  # again, for the backward pass: all starts are known
            return run(**{**given, "chunk_offsets": self.steps.cuts.chunk_offsets})
        state, results = given.pop("initial_state"), []
        for step in self.steps.every:
            self.starts.append(state[: step.segments.stop - step.segments.start])
            h, values, state = run(**self._of(step, given), initial_state=self.starts[-1])
            results.append((h, values))
        self.done.add(FORWARD)
        h, values = (torch.cat(x, 1) for x in zip(*results, strict=True))
        return h, values, state

    def backward(self, run: Callable[..., Any], **given: Any) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward`. `dht` is the gradient of the states at the start of every segment, or None."""
        starts, dstarts, results = given.pop("h0"), given.pop("dht"), []
        after = starts.new_zeros(0, *starts.shape[1:])
        for step in reversed(self.steps.every):
            start = starts[step.segments]
            ended = start.shape[0] - after.shape[0]  # documents of which this is the last segment
            dht = torch.nn.functional.pad(after, (0, 0, 0, 0, 0, 0, 0, ended)) if ended else after
            dh, after, dv = run(**self._of(step, given), h0=start, dht=dht)
            if dstarts is not None:
                after = after + dstarts[step.segments]
            results.append((dh, dv))
        self.done.add(BACKWARD)
        dh, dv = (torch.cat(x[::-1], 1) for x in zip(*results, strict=True))
        return dh, after, dv

    def check(self, name: str) -> None:
        """Raises SettingError if fla computed without asking for the pass `name`."""
        if name not in self.done:
            raise SettingError(
                f"this flash-linear-attention reads segments without {name}: set REFINE_SEGMENTS=apart, or install "
                "fla-core 0.6.0"
            )

    @staticmethod
    def _of(step: Step, given: dict[str, Any]) -> dict[str, Any]:
        own = {name: x[:, step.tokens] for name in PER_TOKEN if (x := given.get(name)) is not None}
        return {**given, **own, **vars(step.cuts)}


_local = threading.local()


@contextmanager
def _under_way(states: StatePass) -> Iterator[StatePass]:
    _local.under_way = states
    try:
        yield states
    finally:
        _local.under_way = None


def read(inputs: list[Tensor | None], state: Tensor, steps: Steps) -> tuple[Tensor, Tensor]:
    """q, k [N, H, K], v [N, J, V], beta [N, J], log decay [N, J] or [N, J, K] (or None), in the order of the steps;
    state [G, J, K, V] of the first step's documents.

    Returns o [N, J, V] and the state at the start of every segment [X, J, K, V], both with gradient.
    """
    given = [None if x is None else x.contiguous() for x in inputs]
    o, starts = _Segments.apply(*given, state.contiguous(), steps)
    return o, starts


class _Segments(torch.autograd.Function):
    @staticmethod
    @own_precision
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor | None, state: Tensor, steps: Steps
    ) -> tuple[Tensor, Tensor]:
        run, _ = _functions(_decay(g))
        more = {"initial_state": state, "output_final_state": True, "scale": q.shape[-1] ** -0.5}
        with torch.cuda.device_of(q), _under_way(StatePass(steps)) as states:
            results = run(**_named(q, k, v, beta, g), **more, **_cuts(steps))
        states.check(FORWARD)
        starts = torch.cat(states.starts)
        o, *kept = _kept(g, results)
        ctx.save_for_backward(q, k, v, beta, g, starts, *kept)
        ctx.steps = steps
        ctx.set_materialize_grads(False)
        return o[0].to(v.dtype), starts

    @staticmethod
    @once_differentiable
    @own_precision
    def backward(ctx: Any, do: Tensor | None, dstarts: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, beta, g, starts, *kept = ctx.saved_tensors
        _, run = _functions(_decay(g))
        do = torch.zeros_like(v) if do is None else do.contiguous()
        more = {"initial_state": starts, "do": do[None], "dht": dstarts, "scale": q.shape[-1] ** -0.5}
        with torch.cuda.device_of(q), _under_way(StatePass(ctx.steps)) as states:
            results = run(**_named(q, k, v, beta, g) | _names(g, kept), **more, **_cuts(ctx.steps))
        states.check(BACKWARD)
        *found, dstate = results[: 5 if g is None else 6]
        given = [x for x in (q, k, v, beta, g) if x is not None]
        gradients = [d[0].to(x.dtype) for d, x in zip(found, given, strict=True)]
        return *gradients, *[None] * (g is None), dstate, None


def _decay(g: Tensor | None) -> str:
    return "none" if g is None else "channel" if g.ndim == 3 else "head"


def _named(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor | None) -> dict[str, Tensor]:
    named = {"q": q[None], "k": k[None], "v": v[None], "beta": beta[None]}
    return named if g is None else {**named, "g": g[None]}


def _cuts(steps: Steps) -> dict[str, Tensor]:
    return {"cu_seqlens": steps.cuts.cu_seqlens, "chunk_indices": steps.cuts.chunk_indices}


def _kept(g: Tensor | None, results: Sequence[Any]) -> list[Tensor]:
    """Of what fla's forward function returns: o, and what its backward function needs."""
    if g is None:
        return [results[0], results[1]]  # o, A
    if g.ndim == 2:
        return [results[1], results[0], results[2]]  # o, g added up, A
    return [results[0], *results[2:5]]  # o, g added up, Aqk, Akk


def _names(g: Tensor | None, kept: Sequence[Tensor]) -> dict[str, Tensor]:
    names = ("A",) if g is None else ("g", "A") if g.ndim == 2 else ("g", "Aqk", "Akk")
    return dict(zip(names, kept, strict=True))
