"""What a LaCT layer remembers: fast weights, and the last tokens of its window and of its unfinished chunk.

Shape legend: R rows · P distinct states · H fast heads · E inner and K outer width of the fast MLP · S slots of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from refine.errors import ModelError
from refine.models.lact.recent_tokens import RecentTokens
from refine.models.token_mixer import LayerMemory
from refine.ops.fast_mlp.mlp import State
from refine.ops.fast_mlp.read import join, pick
from refine.ops.layout import on_device


class LactMemory(LayerMemory):
    """Row r has state shared[r] of `state` (P states, see `refine.ops.fast_mlp.mlp.State`).

    `window`: the keys and values of the last W - 1 tokens. `pending`: keys, values, rates (and carry) of the unfinished
    chunk's tokens. Rows tapped from one read share its states, windows and chunks: tapping, `select` and `repeat` copy
    none of them. Decoding copies window and chunk once in `Lact.append_limit` tokens (see RecentTokens).
    """

    def __init__(self, state: State, shared: Sequence[int], window: RecentTokens, pending: RecentTokens) -> None:
        self.state, self.shared = state, tuple(shared)
        self.window, self.pending = window, pending

    @property
    def rows(self) -> int:
        return len(self.shared)

    @property
    def nbytes(self) -> int:
        states = sum(x[:1].numel() * x.element_size() for x in self.state.values()) * len(set(self.shared))
        counts = 2 * 8 * self.rows
        return states + self.window.nbytes + self.pending.nbytes + counts

    @property
    def device(self) -> torch.device:
        return self.state["out"].device

    def compact(self) -> LactMemory:
        """The same memory, its tokens copied out of the read."""
        return LactMemory(self.state, self.shared, self.window.compact(), self.pending.compact())

    def select(self, index: Tensor) -> LactMemory:
        rows = index.tolist()
        shared = [self.shared[r] for r in rows]
        distinct = sorted(set(shared))
        number = {p: i for i, p in enumerate(distinct)}
        recent = (part.select(rows) for part in (self.window, self.pending))
        return LactMemory(pick(self.state, distinct), [number[p] for p in shared], *recent)

    def map(self, function: Callable[[Tensor], Tensor]) -> LactMemory:
        state = {name: function(x) for name, x in self.state.items()}
        return LactMemory(state, self.shared, self.window.map(function), self.pending.map(function))

    def tensors(self) -> dict[str, Tensor]:
        index = on_device(self.shared, self.device)
        tensors = {name: x.index_select(0, index) for name, x in self.state.items()}
        for name, recent in (("window", self.window), ("pending", self.pending)):
            compact = recent.compact()
            tensors |= {f"{name}.{part}": x.unflatten(0, (self.rows, -1)) for part, x in compact.pool.items()}
            tensors[f"{name}.count"] = torch.tensor(compact.counts, device=self.device)
        return tensors

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> LactMemory:
        if absent := {"gates", "out", "window.count", "pending.count"} - set(tensors):
            raise ModelError(f"a memory of LaCT lacks {', '.join(sorted(absent))}")
        rows = tensors["out"].shape[0]
        if wrong := [name for name, x in tensors.items() if x.shape[0] != rows]:
            raise ModelError(f"a memory of LaCT has {rows} rows, but {wrong[0]} has {tensors[wrong[0]].shape[0]}")
        state = {name: x for name, x in tensors.items() if "." not in name}
        recent = (_recent(tensors, name, rows) for name in ("window", "pending"))
        return cls(state, range(rows), *recent)

    @classmethod
    def cat(cls, memories: Sequence[LactMemory]) -> LactMemory:
        shared, before = [], 0
        for memory in memories:
            shared += [before + p for p in memory.shared]
            before += memory.state["out"].shape[0]
        window, pending = (
            RecentTokens.cat([getattr(memory, name) for memory in memories]) for name in ("window", "pending")
        )
        return cls(join([memory.state for memory in memories]), shared, window, pending)


def _recent(tensors: dict[str, Tensor], name: str, rows: int) -> RecentTokens:
    """The window or chunk that `LactMemory.tensors` saved under `name`."""
    held = {key.split(".")[1]: x for key, x in tensors.items() if key.startswith(f"{name}.") and key != f"{name}.count"}
    counts = tensors[f"{name}.count"].tolist()
    slots = {x.shape[1] for x in held.values() if x.dim() > 1}
    if len(slots) != 1 or max(counts) > next(iter(slots)) or min(counts) < 0:
        shapes = {key: tuple(x.shape) for key, x in held.items()}
        raise ModelError(f"a memory of LaCT has {counts} tokens in its {name}, which does not fit {shapes}")
    width = slots.pop()
    ranges = [((r + 1) * width - n, (r + 1) * width) for r, n in enumerate(counts)]
    return RecentTokens({part: x.flatten(0, 1) for part, x in held.items()}, ranges)
