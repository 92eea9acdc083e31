"""What an attention layer remembers: keys and values of earlier tokens, as views of the read that made them.

Shape legend: R rows · L tokens of a read · h heads of keys and values · K width of a head · S slots of a saved row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from refine.errors import ModelError
from refine.models.attention.spans import Spans
from refine.models.token_mixer import LayerMemory

NAMES = ("keys", "values")


class AttentionMemory(LayerMemory):
    """Row r is `prefix` row r, then `own` row r: keys (with their rotary positions) and values [., h, K].

    `prefix` is the read from which the row was tapped; all its rows share its tensors. What a row reads later (a
    rollout, an answer, the next piece) is in `own`. Tapping, `select`, `repeat` and `detach` copy neither. A read that
    follows copies the own tokens, and never the prefix. `names`: of the tensors of tokens.
    """

    names: ClassVar[tuple[str, ...]] = NAMES

    def __init__(self, prefix: Spans, own: Spans) -> None:
        self.prefix, self.own = prefix, own

    @classmethod
    def of(cls, prefix: Spans) -> AttentionMemory:
        """Rows that have a prefix only."""
        nothing = {name: x[:0] for name, x in prefix.tokens.items()}
        return cls(prefix, Spans(nothing, [(0, 0)] * len(prefix.ranges)))

    @property
    def rows(self) -> int:
        return len(self.prefix.ranges)

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens that each row remembers."""
        return tuple(a + b for a, b in zip(self.prefix.counts, self.own.counts, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes of the rows' tokens [bytes]: grows with the text; what rows share counts once."""
        return self.prefix.nbytes + self.own.nbytes + 8 * self.rows

    @property
    def device(self) -> torch.device:
        return self.prefix.tokens[self.names[0]].device

    def select(self, index: Tensor) -> AttentionMemory:
        rows = index.tolist()
        return type(self)(self.prefix.select(rows), self.own.select(rows))

    def map(self, function: Callable[[Tensor], Tensor]) -> AttentionMemory:
        return type(self)(self.prefix.map(function), self.own.map(function))

    def last(self, count: int) -> AttentionMemory:
        """The last `count` tokens of each row (all, where it has fewer)."""
        own = [min(count, n) for n in self.own.counts]
        prefix = [min(count - j, n) for j, n in zip(own, self.prefix.counts, strict=True)]
        memory = type(self)(self.prefix.last(prefix), self.own.last(own))
        return self.of(memory.own) if memory.prefix.empty else memory

    def trimmed(self) -> AttentionMemory:
        """The same memory, without the tokens of the read that no row remembers."""
        return type(self)(self.prefix.trimmed(), self.own.trimmed())

    def tensors(self) -> dict[str, Tensor]:
        """Tensors of tokens (keys, values [R, S, h, K]), each row's at the end of its slots, after zeros; count [R]."""
        counts = self.counts
        slots = max(counts, default=0)
        tensors = {}
        for name in self.names:
            prefix, own = self.prefix.tokens[name], self.own.tokens[name]
            rows = zip(self.prefix.ranges, self.own.ranges, strict=True)
            laid = [torch.cat([prefix[a:b], own[c:d].to(prefix.dtype)]) for (a, b), (c, d) in rows]
            filled = [torch.cat([x.new_zeros(slots - len(x), *x.shape[1:]), x]) for x in laid]
            tensors[name] = torch.stack(filled)
        return {**tensors, "count": torch.tensor(counts, device=self.device)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> AttentionMemory:
        if absent := {*cls.names, "count"} - set(tensors):
            raise ModelError(f"a memory of attention lacks {', '.join(sorted(absent))}")
        counts, shapes = tensors["count"].tolist(), {name: tuple(x.shape) for name, x in tensors.items()}
        rows, slots = tensors[cls.names[0]].shape[:2]
        alike = len({shapes[name] for name in cls.names}) == 1
        if not alike or len(counts) != rows or not all(0 <= n <= slots for n in counts):
            raise ModelError(f"a memory of attention has {counts} tokens in its rows, which does not fit {shapes}")
        ranges = [((r + 1) * slots - n, (r + 1) * slots) for r, n in enumerate(counts)]
        return cls.of(Spans({name: tensors[name].flatten(0, 1) for name in cls.names}, ranges))

    @classmethod
    def cat(cls, memories: Sequence[AttentionMemory]) -> AttentionMemory:
        return cls(Spans.cat([m.prefix for m in memories]), Spans.cat([m.own for m in memories]))
