"""What a read of a layer with the delta rule keeps, from which its memory can be tapped.

Shape legend: N tokens of all documents · R tapped rows · W width of a convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from refine.models.token_mixer import Keep, LayerMemory, MixerInputs, TensorMemory, Trace
from refine.ops import short_convolution
from refine.ops.delta_rule import fla
from refine.ops.delta_rule import rule as delta_rule
from refine.ops.delta_rule.chunks import Chunks
from refine.ops.layout import Ends, Layout, Taps

States = delta_rule.ChunkStates | Ends | fla.SegmentStates


class Mixer(Protocol):
    """What reading a few tokens again needs of a `DeltaRuleMixer`."""

    steps: int
    conv_size: int
    tails: dict[str, int]
    __call__: Callable[..., tuple[Tensor, Any]]

    def project(self, x: Tensor) -> dict[str, Tensor]:
        """x [N, D] -> the inputs of the convolutions, by name."""

    def fresh(self, rows: int, device: torch.device, dtype: torch.dtype) -> TensorMemory:
        """The memory of rows that have read nothing."""


class DeltaTrace(Trace):
    """The states of the delta rule, so many `steps` of it a token, and the inputs of the convolutions of one read."""

    def __init__(self, states: States, tails: dict[str, short_convolution.Tails], steps: int = 1) -> None:
        self.states, self.tails, self.steps = states, tails, steps

    def tap(self, taps: Taps, inputs: MixerInputs | None) -> TensorMemory:
        tails = {name: tails.at(taps) for name, tails in self.tails.items()}
        return TensorMemory({"state": self.states.at(taps.times(self.steps)), **tails})


class SparseDeltaTrace(Trace):
    """Keeps the state at every few chunks of a document; a tap reads the tokens since the last kept state again."""

    def __init__(self, mixer: Mixer, trace: DeltaTrace, layout: Layout, memory: LayerMemory | None) -> None:
        assert not isinstance(trace.states, Ends)  # these hold every state there is
        self.mixer, self.layout = mixer, layout
        if memory is None:
            memory = mixer.fresh(layout.documents, layout.device, trace.states.starts.tensor.dtype)
        self.start = memory
        chunks, every = trace.states.chunks, trace.states.sparse
        self.span = chunks.size * every // mixer.steps  # tokens between kept states
        self.kept, place = chunks.layout.once(("sparse", chunks.size), lambda: self._kept_states(chunks, every))
        self.states = trace.states.starts.pick(place)

    def tap(self, taps: Taps, inputs: MixerInputs | None) -> LayerMemory:
        assert inputs is not None
        begin = [(n - 1) // self.span * self.span for n in taps.counts]
        state = self.states.index_select(
            0, taps.tensor([self.kept[g, n // self.span] for g, n in zip(taps.documents, begin, strict=True)])
        )
        tails = self._tails(taps, begin, inputs) if self.mixer.conv_size else {}
        lengths = [n - b for n, b in zip(taps.counts, begin, strict=True)]
        places = [self.layout.starts[g] + b for g, b in zip(taps.documents, begin, strict=True)]
        index = torch.cat([torch.arange(place, place + n) for place, n in zip(places, lengths, strict=True)])
        layout = Layout(lengths, device=taps.device)
        before = TensorMemory({"state": state, **tails})
        _, trace = self.mixer(inputs(index.to(taps.device)), layout, before, Keep.ENDS)
        return trace.tap(Taps.ends(layout), None)

    def _tails(self, taps: Taps, begin: list[int], inputs: MixerInputs) -> dict[str, Tensor]:
        """The W - 1 inputs of each convolution before token begin[r], projected again or remembered."""
        more = self.mixer.conv_size - 1
        inside = [b > 0 for b in begin]  # then at least one chunk lies before it, which is more than W - 1 tokens
        tails = self.start.select(torch.tensor(taps.documents)).tensors()
        if not any(inside):
            return {name: tails[name] for name in self.mixer.tails}
        first = [self.layout.starts[g] + b - more if b else 0 for g, b in zip(taps.documents, begin, strict=True)]
        index = (taps.tensor(first)[:, None] + torch.arange(more, device=taps.device)).reshape(-1)
        again = self.mixer.project(inputs(index.clamp(max=self.layout.tokens - 1)))
        here = torch.tensor(inside, device=taps.device)[:, None, None]
        return {
            n: torch.where(here, y.view(taps.rows, more, y.shape[-1]).to(tails[n].dtype), tails[n])
            for n, y in again.items()
        }

    @staticmethod
    def _kept_states(chunks: Chunks, every: int) -> tuple[dict[tuple[int, int], int], Tensor]:
        """The row of each kept (document, number of its kept state), and the chunk that starts with each row."""
        rows: dict[tuple[int, int], int] = {}
        places: list[int] = []
        for g, n in enumerate(chunks.layout.lengths):
            for number, j in enumerate(range(0, -(-n // chunks.size), every)):
                rows[g, number] = len(places)
                places.append(chunks.offset[j] + chunks.rank[g])
        return rows, chunks.layout.tensor(places)
