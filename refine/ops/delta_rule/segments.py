"""Where the segments of a read lie, as flash-linear-attention's kernels want to know it.

Shape legend: N tokens of all documents · n documents laid end to end.

A document is read in segments. Step j reads the segments number j of all documents that have one, laid end to end, the
longest documents first. fla calls segments documents, and works on each in chunks of CHUNK tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from refine.ops.delta_rule.chunks import Chunks
from refine.ops.layout import moved_together, on_device

CHUNK = 64  # tokens between the kernels' own states


@dataclass(frozen=True)
class Cuts:
    """Where documents laid end to end begin, as fla wants it: cu_seqlens [n + 1], chunk_indices [chunks, 2] (document,
    chunk of it), chunk_offsets [n + 1], all int64 on the device."""

    cu_seqlens: Tensor
    chunk_indices: Tensor
    chunk_offsets: Tensor

    @staticmethod
    def on_host(lengths: Sequence[int]) -> list[Tensor]:
        """The three tensors for documents of `lengths` tokens."""
        counts = [-(-n // CHUNK) for n in lengths]
        places = [(i, j) for i, count in enumerate(counts) for j in range(count)]
        return [torch.tensor(x) for x in ([0, *accumulate(lengths)], places, [0, *accumulate(counts)])]


@dataclass(frozen=True)
class Step:
    """Segments that are read at the same time, one of each document that is still read: their place among all segments,
    tokens and chunks, and their own cuts."""

    segments: slice
    tokens: slice
    chunks: slice
    cuts: Cuts


@dataclass(frozen=True)
class Steps:
    """All segments of a read, in the order of the steps. A step's documents are the first of the step before."""

    every: list[Step]
    cuts: Cuts

    @staticmethod
    def of(lengths: Sequence[Sequence[int]], device: torch.device) -> Steps:
        """lengths[j]: the tokens of each segment of step j. One transfer to the device."""
        flat = [n for step in lengths for n in step]
        hosted = [Cuts.on_host(flat), *(Cuts.on_host(step) for step in lengths)]
        moved = _moved([x for cuts in hosted for x in cuts], device)
        whole, *each = (Cuts(*moved[i : i + 3]) for i in range(0, len(moved), 3))
        sizes = [(len(step), sum(step), sum(-(-n // CHUNK) for n in step)) for step in lengths]
        ends = [tuple(accumulate(column)) for column in zip(*sizes, strict=True)]
        places = [[slice(end[j] - size[i], end[j]) for i, end in enumerate(ends)] for j, size in enumerate(sizes)]
        return Steps([Step(a, b, c, cuts) for (a, b, c), cuts in zip(places, each, strict=True)], whole)


def _moved(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """int64 tensors in one transfer. Each begins at 16 bytes: Triton compiles a kernel again for other addresses."""
    even = [torch.nn.functional.pad(x.flatten(), (0, x.numel() % 2)) for x in tensors]
    moved = moved_together(even, device)
    return [y[: x.numel()].view(x.shape) for x, y in zip(tensors, moved, strict=True)]


@functools.lru_cache(maxsize=64)
def bounds(lengths: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """[len + 1] on the device and on the host: where documents laid end to end begin. The same tensors for all layers,
    because fla keeps what it derives from them."""
    with torch.inference_mode(False):
        on_host = torch.tensor([0, *accumulate(lengths)], dtype=torch.int64)
        return on_device(on_host.tolist(), device), on_host


def segment_lengths(segments: Chunks) -> list[list[int]]:
    """For each step, the tokens of each active document's segment."""
    ranked = sorted(range(segments.layout.documents), key=segments.rank.__getitem__)
    lengths, size = segments.layout.lengths, segments.size
    return [[min(size, lengths[g] - j * size) for g in ranked[:active]] for j, active in enumerate(segments.active)]


def segment_order(segments: Chunks) -> Tensor | None:
    """[N]: the tokens in the order of the steps; None if they are in that order already."""
    layout, size = segments.layout, segments.size
    if layout.documents == 1 or (len(segments.active) == 1 and segments.order is None):
        return None
    ranked = sorted(range(layout.documents), key=segments.rank.__getitem__)
    spans = [
        torch.arange(layout.starts[g] + j * size, layout.starts[g] + min((j + 1) * size, layout.lengths[g]))
        for j, active in enumerate(segments.active)
        for g in ranked[:active]
    ]
    return torch.cat(spans).to(layout.device)


def arranged(x: Tensor, order: Tensor | None) -> Tensor:
    """x [N, ...] in `order` (None: as it is)."""
    return x if order is None else x.index_select(0, order)
