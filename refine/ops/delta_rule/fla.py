"""The delta rule by flash-linear-attention's CUDA kernels. Only this file and `fla_segments` import them.

Shape legend: N tokens of all documents · G documents · X segments of all documents · R tapped rows
              H heads of q and k · J heads of v (a multiple of H) · K, V widths of a head.

Same interface as `rule.read`. A document is read in segments of `every` tokens, and the state at the start of each is
kept: by one call for all segments (`fla_segments`), or by a call for each, which returns the state at its end. A tap
reads the tokens since the last kept state again: at most `every` tokens of one layer's k, v and rates, never a
projection.

`REFINE_KERNELS` chooses: "auto" (default: kernels with a CUDA device, fla, triton and 16-bit activations, else
PyTorch), "torch", or "fla" (an error if they cannot run). The choice is logged once.

On Hopper, triton 3.4 to 3.7.0 compiles the gated backward pass wrongly for blocks of 64 key channels, so fla refuses
that pass, for heads of any width (fla-org/flash-linear-attention#640). Wider heads have blocks of 128, which are right:
for them the refusal is lifted. Up to 64 channels, reads that need a gradient go to PyTorch, and with a decay for each
channel all of them there: its kernels are others, and not proven. They are given g and beta, and never choose the form
for bounded gates ("safe"), in which later tokens change earlier outputs (#1240, #1242).
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from packaging.version import InvalidVersion, Version
from torch import Tensor

from refine.errors import SettingError
from refine.ops.delta_rule import fla_segments, tuning
from refine.ops.delta_rule.chunks import Chunks
from refine.ops.delta_rule.segments import Steps, arranged, bounds, segment_lengths, segment_order
from refine.ops.layout import Layout, Taps
from refine.ops.tapped_rows import LaterRows

log = logging.getLogger(__name__)
EVERY = 512  # tokens between kept states: enough to fill a device, few enough to read again at a tap
SHORT = 64  # up to this many tokens the recurrent kernels are faster than the chunked ones (fla's own threshold)
OLDEST = Version("0.6.0")  # of fla-core: before 0.5.2 dk and dbeta are wrong on Hopper
WRONG = Version("3.4"), Version("3.7.1")  # triton from .. to before: the gated backward pass on Hopper
NARROW = 64  # key channels of a head up to which that pass is wrong
CHANNELS = 256  # key channels of a head that the kernels with a decay for each can read


@dataclass(frozen=True)
class Kernels:
    """fla's functions: q, k [B, T, H, K], v [B, T, J, V], beta [B, T, J], g [B, T, J] (channel: [B, T, J, K]), states
    [B, J, K, V]. The recurrent ones with g have no backward pass."""

    chunk: Callable[..., tuple[Tensor, Tensor]]
    chunk_gated: Callable[..., tuple[Tensor, Tensor]]
    recurrent: Callable[..., tuple[Tensor, Tensor]]
    recurrent_gated: Callable[..., tuple[Tensor, Tensor]]
    chunk_channel: Callable[..., tuple[Tensor, Tensor]]
    recurrent_channel: Callable[..., tuple[Tensor, Tensor]]


@functools.cache
def kernels() -> Kernels:
    """Import fla's kernels (seconds; needs triton). Few configurations of them are tried: see `tuning`."""
    from fla.ops.delta_rule import chunk_delta_rule, fused_recurrent_delta_rule
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
    from fla.ops.kda import chunk_kda, fused_recurrent_kda

    tuning.restrict()
    gated = chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
    return Kernels(chunk_delta_rule, gated[0], fused_recurrent_delta_rule, gated[1], chunk_kda, fused_recurrent_kda)


def chosen(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels read activations of `dtype` on `device`. Raises SettingError if wanted, but they cannot."""
    return _choice(_wish(), device.type, dtype)


def reads(device: torch.device, dtype: torch.dtype, log_decay: Tensor | None, q: Tensor, *more: Tensor | None) -> bool:
    """Whether the kernels read activations of `dtype` with such a decay, and have the gradients that `q` and the others
    need. Raises SettingError as `chosen` and `differentiates`."""
    use = chosen(device, dtype)
    if not use or log_decay is None:
        return use
    key_width, channels = q.shape[-1], log_decay.ndim == 3
    if channels and key_width > CHANNELS:
        if _wish() != "fla":
            return False
        limit = f"kernels with a decay for each of a head's {key_width} key channels read at most {CHANNELS}"
        raise SettingError(f"REFINE_KERNELS is 'fla', but {limit}: use auto or torch")
    return not needs_gradient(q, log_decay, *more) or differentiates(device, key_width, channels)


def differentiates(device: torch.device, key_width: int, channels: bool = False) -> bool:
    """Whether the gated kernels, on a `device` where they run, have a backward pass for heads of `key_width` channels
    (`channels`: with a decay for each).

    Prepares that pass. Raises SettingError if REFINE_KERNELS is "fla" and they have none.
    """
    return _differentiates(_wish(), device, key_width, channels)


def torch_alone(what: str, device: torch.device) -> None:
    """For a layer that no kernel is trusted with yet: say once that PyTorch computes it. Raises SettingError if
    REFINE_KERNELS is "fla"."""
    _torch_alone(_wish(), what, device.type)


@functools.cache
def _torch_alone(wish: str, what: str, device: str) -> None:
    if wish == "fla":
        raise SettingError(f"REFINE_KERNELS is 'fla', but only PyTorch computes {what} here: use auto or torch")
    log.info("%s on %s: PyTorch", what, device)


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd records what is done with `tensors`."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def allowed() -> bool:
    """Whether REFINE_KERNELS leaves a choice to kernels."""
    return _wish() != "torch"


def _wish() -> str:
    return os.environ.get("REFINE_KERNELS", "auto")


@functools.cache
def _choice(wish: str, device: str, dtype: torch.dtype) -> bool:
    if wish not in ("auto", "torch", "fla"):
        raise SettingError(f"REFINE_KERNELS is {wish!r}: expected auto, torch or fla")
    reason = None
    if device != "cuda":
        reason = f"the model is on {device}, not on a CUDA device"
    elif missing := lacking():
        reason = missing
    elif dtype not in (torch.bfloat16, torch.float16):
        reason = f"activations are {dtype}, and the kernels read only 16-bit ones"
    if wish == "fla" and reason:
        raise SettingError(f"REFINE_KERNELS is 'fla', but {reason}: use auto or torch")
    use = reason is None and wish != "torch"
    log.info("delta rule on %s in %s: %s", device, dtype, "flash-linear-attention's kernels" if use else "PyTorch")
    return use


def lacking() -> str | None:
    """What is missing of the packages that the kernels need; None if nothing is."""
    absent = [name for name in ("fla", "triton") if importlib.util.find_spec(name) is None]
    if absent:
        return f"{' and '.join(absent)} cannot be imported"
    there = _version("fla-core")
    return f"fla-core is {there}, and the kernels need {OLDEST} or later" if there and there < OLDEST else None


def _version(package: str) -> Version | None:
    """None: the package is there without metadata, or with a version of its own kind."""
    try:
        return Version(importlib.metadata.version(package))
    except (importlib.metadata.PackageNotFoundError, InvalidVersion):
        return None


@functools.cache
def _differentiates(wish: str, device: torch.device, key_width: int, channels: bool = False) -> bool:
    triton = _version("triton")
    wrong = triton is not None and WRONG[0] <= triton < WRONG[1] and not _tilelang()
    if not wrong or torch.cuda.get_device_capability(device)[0] != 9:
        return True
    if key_width > NARROW and not channels:
        _lift_refusal()
        return True
    reason = (
        f"triton {triton} computes wrong gradients of the gated delta rule on this GPU for heads of {key_width} key "
        f"channels (right above {NARROW})"
    )
    if channels:
        reason = (
            f"triton {triton} computes wrong gradients of some kernels on this GPU, and those with a decay for each "
            "key channel are not proven right there"
        )
    advice = f"install tilelang (and nvcc, which it needs), or triton {WRONG[1]} or later"
    if wish == "fla":
        raise SettingError(f"REFINE_KERNELS is 'fla', but {reason}: {advice}, or use auto or torch")
    log.warning("%s: PyTorch computes them, which is slower; %s", reason, advice)
    return False


def _tilelang() -> bool:
    """Whether fla computes that pass with tilelang: it is there, with the nvcc that it needs, and not switched off."""
    if importlib.util.find_spec("tilelang") is None:
        return False
    try:
        from fla.ops.common.backends.tilelang import CommonTileLangBackend as Backend
    except ImportError:
        return False
    return bool(Backend.is_available() and Backend().is_enabled())


@functools.cache
def _lift_refusal() -> None:
    """Let fla run the gated backward pass for heads of more than NARROW key channels; others are refused as before."""
    import fla.ops.common.chunk_o as kernel
    import fla.ops.gated_delta_rule.chunk as caller

    refusing, lock = caller.chunk_bwd_dqkwg, threading.Lock()

    def run(*args: Any, **kwargs: Any) -> Any:
        keys = kwargs["k"] if "k" in kwargs else args[1]
        with lock:
            kernel.TRITON_ABOVE_3_7_1 = keys.shape[-1] > NARROW
            try:
                return refusing(*args, **kwargs)
            finally:
                kernel.TRITON_ABOVE_3_7_1 = False

    caller.chunk_bwd_dqkwg = run
    log.info("gated delta rule: the backward pass runs for heads of more than %d key channels", NARROW)


def read(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    state: Tensor | None,
    layout: Layout,
    every: int = EVERY,
) -> tuple[Tensor, SegmentStates]:
    """q, k [N, H, K], v [N, J, V], beta [N, J], log_decay [N, J], [N, J, K] or None; state [G, J, K, V] or None (0).

    Returns o [N, J, V] in the dtype of v, and the states of the read, kept every `every` tokens.
    """
    segments = Chunks.of(layout, every)
    order = layout.once(("segment order", every), lambda: segment_order(segments))
    later = [None if x is None else LaterRows(x) for x in (k, v, beta, log_decay)]
    used = [q, *(None if x is None else x.tensor for x in later)]
    inputs = [None if x is None else arranged(x, order) for x in used]
    if state is None:
        state = v.new_zeros(layout.documents, v.shape[1], k.shape[2], v.shape[2], dtype=_wide(v.dtype))
    elif segments.order is not None:
        state = state.index_select(0, segments.order)
    lengths = layout.once(("segment lengths", every), lambda: segment_lengths(segments))
    if len(lengths) > 1 and fla_segments.wanted():
        steps = layout.once(("segment steps", every), lambda: Steps.of(lengths, layout.device))
        o, starts = fla_segments.read(_as_given(inputs), state, steps)
        after = None
    else:
        o, starts, after = _apart(inputs, state, lengths)
    if order is not None:
        o = torch.empty_like(o).index_copy(0, order, o)
    ends = None if torch.is_grad_enabled() or len(lengths) > 1 else after
    return o, SegmentStates(segments, later, LaterRows(starts), ends)


def _apart(inputs: list[Tensor | None], state: Tensor, lengths: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """As `fla_segments.read`, with a call for each step of `lengths`. Also returns the states after the last step."""
    outputs, starts, sizes = [], [], [sum(step) for step in lengths]
    # the gradients of split parts are joined once; each slice's would be as long as the text
    parts = zip(*([None] * len(sizes) if x is None else x.split(sizes) for x in inputs), strict=True)
    for step, part in zip(lengths, parts, strict=True):
        starts.append(state[: len(step)])
        o, state = _call(list(part), starts[-1], step)
        outputs.append(o)
    if len(lengths) == 1:
        return outputs[0], starts[0], state
    return torch.cat(outputs), torch.cat(starts), state


def _as_given(inputs: list[Tensor | None]) -> list[Tensor | None]:
    """q, k, v, beta, log decay (or None), with beta in the dtype of v."""
    q, k, v, beta, log_decay = inputs
    assert v is not None and beta is not None
    return [q, k, v, beta.to(v.dtype), log_decay]


class SegmentStates:
    """The states of a read at the start of every segment, starts [X, J, K, V], and what reading on from them needs:
    `tokens`, the k, v, beta and log decay (or None) of all tokens. `ends`: of a read without gradient in one segment,
    the states after it."""

    def __init__(
        self, chunks: Chunks, tokens: list[LaterRows | None], starts: LaterRows, ends: Tensor | None = None
    ) -> None:
        self.chunks, self.starts = chunks, starts
        self._tokens, self._ends = tokens, ends

    sparse = 1  # under gradient checkpointing the state of every segment is kept

    def at(self, taps: Taps) -> Tensor:
        """[R, J, K, V]: the state at each tap, with gradient."""
        if self._ends is not None and self.chunks.ends_all(taps):
            return self._ends  # a step of decoding reads its token once
        layout, every = self.chunks.layout, self.chunks.size
        segment, _ = self.chunks.tapped(taps)

        def build() -> tuple[list[int], Tensor]:
            lengths = [(n - 1) % every + 1 for n in taps.counts]
            ends = [layout.starts[g] + n for g, n in zip(taps.documents, taps.counts, strict=True)]
            spans = [torch.arange(end - n, end) for end, n in zip(ends, lengths, strict=True)]
            return lengths, torch.cat(spans).to(taps.device)

        lengths, index = taps.once(("segment tokens", every), build)
        again = [None if x is None else x.pick(index) for x in self._tokens]
        assert again[0] is not None
        return _call([again[0].detach(), *again], self.starts.pick(segment), lengths)[1]


def _call(inputs: list[Tensor | None], state: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """q, k, v, beta, log decay (or None) of documents of `lengths` tokens laid end to end, state [len, J, K, V]
    -> o [sum, J, V] and the states after them [len, J, K, V]."""
    names = ("q", "k", "v", "beta", "g")
    # never in rows, even where all are equally long: the number of rows is a constant of the kernels, which would be
    # compiled again for each number of rollouts
    present = {name: x for name, x in zip(names, _as_given(inputs), strict=True) if x is not None}
    given: dict[str, Any] = {name: x[None].contiguous() for name, x in present.items()}
    gated, differentiable = "g" in given, needs_gradient(*inputs, state)
    short = max(lengths) <= SHORT and not (gated and differentiable)
    if short and differentiable and not state.requires_grad:
        state = state.detach().requires_grad_()  # the recurrent backward pass writes its gradient unconditionally
    if len(lengths) > 1:
        given["cu_seqlens"], on_host = bounds(tuple(lengths), state.device)
        if not short:
            given["cu_seqlens_cpu"] = on_host  # else fla waits for the device to count chunks
    kind = "" if not gated else "_channel" if given["g"].ndim == 4 else "_gated"
    run = getattr(kernels(), f"{'recurrent' if short else 'chunk'}{kind}")
    o, after = run(**given, initial_state=state.contiguous(), output_final_state=True)
    return o.flatten(0, 1), after


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
