"""The contract of a token mixer (DeltaNet, Gated DeltaNet, LaCT): `TokenMixer` reads, `Trace` is what it keeps of one
read, `LayerMemory` is what it remembers.

Shape legend: N tokens of all documents of a read · G documents · R tapped rows · D hidden size.

The language model turns padding, packing and pieces into a `Layout`: G documents laid end to end, each of which
continues its row of a memory or a fresh one. A mixer therefore sees documents only: no batch, no mask.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from refine.errors import ModelError
from refine.ops.layout import Layout, Taps, on_device

MixerInputs = Callable[[Tensor], Tensor]
"""index [M] int64 of tokens (0 .. N-1) -> their mixer inputs [M, D], with gradient into the block's input."""


class Keep(enum.Enum):
    """Which memories a mixer's trace must give after the read, and what it may hold for that.

    ENDS: the memory after the last token of each document; holds nothing else.
    ALL: the memory after any token; may hold whatever autograd holds anyway.
    SPARSE: the memory after any token, under gradient checkpointing; holds the states at a coarse interval, and reads
    the few tokens since the last one again, through `inputs`.
    """

    ENDS = "ends"
    ALL = "all"
    SPARSE = "sparse"


class LayerMemory(ABC):
    """What one layer remembers, a row for each sequence. Immutable: every method returns a new object.

    Tensors may be views into a read (a tapped window, a pending chunk), and `select` and `repeat` need not copy them.
    States are at least float32. Every subclass is registered in `kinds` under its class name, for loading.
    """

    kinds: ClassVar[dict[str, type[LayerMemory]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        LayerMemory.kinds[cls.__name__] = cls

    @property
    @abstractmethod
    def rows(self) -> int:
        """Number of sequences."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that these rows hold [bytes]."""

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next(iter(self.tensors().values())).device

    @abstractmethod
    def select(self, index: Tensor) -> LayerMemory:
        """Rows index[0], index[1], ... (int64 [R], repeats allowed), with gradient. An `index` on the host waits for no
        device."""

    @abstractmethod
    def map(self, function: Callable[[Tensor], Tensor]) -> LayerMemory:
        """The same memory with `function` (detach, move, cast) applied to each tensor, integers included."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Everything to be saved, by name. Row r of every tensor belongs to row r of the memory."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> LayerMemory:
        """The inverse of `tensors`. Raises ModelError if one is missing or has another shape."""

    @classmethod
    @abstractmethod
    def cat(cls, memories: Sequence[Any]) -> LayerMemory:
        """The rows of all `memories`, one after the other."""

    def repeat(self, n: int) -> LayerMemory:
        """Row r becomes rows r*n .. r*n + n - 1."""
        return self.select(torch.arange(self.rows).repeat_interleave(n))


class TensorMemory(LayerMemory):
    """A memory that is no more than a few tensors with the rows in front: row r is tensors[name][shared[r]].

    `shared` (default: every row its own) lets the n rollouts of a tap hold one state, which no read changes: `select`
    and `repeat` copy a row only to leave others behind, and `tensors` lays all rows out, for the layer that reads.
    """

    def __init__(self, tensors: dict[str, Tensor], shared: Sequence[int] | None = None) -> None:
        self._held = tensors
        stored = next(iter(tensors.values())).shape[0]
        self.shared = tuple(range(stored)) if shared is None else tuple(shared)
        self._own_rows = self.shared == tuple(range(stored))

    def __getitem__(self, name: str) -> Tensor:
        return self._laid_out(self._held[name])

    @property
    def rows(self) -> int:
        return len(self.shared)

    @property
    def nbytes(self) -> int:
        """Bytes that these rows hold [bytes]; what rows share counts once."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._held.values())

    @property
    def device(self) -> torch.device:
        return next(iter(self._held.values())).device

    def select(self, index: Tensor) -> TensorMemory:
        wanted = [self.shared[r] for r in index.tolist()]
        distinct = sorted(set(wanted))
        if len(distinct) == next(iter(self._held.values())).shape[0]:
            return TensorMemory(self._held, wanted)
        kept = on_device(distinct, self.device)
        place = {row: i for i, row in enumerate(distinct)}
        held = {name: tensor.index_select(0, kept) for name, tensor in self._held.items()}
        return TensorMemory(held, [place[row] for row in wanted])

    def map(self, function: Callable[[Tensor], Tensor]) -> TensorMemory:
        return TensorMemory({name: function(tensor) for name, tensor in self._held.items()}, self.shared)

    def tensors(self) -> dict[str, Tensor]:
        return {name: self._laid_out(tensor) for name, tensor in self._held.items()}

    def shared_in_order(self, name: str) -> tuple[Tensor, int]:
        """The tensor `name` with each held row once, and n, if n rows in a row share each, in order; else the tensor of
        all rows, and 1."""
        held = self._held[name]
        n = len(self.shared) // max(1, held.shape[0])
        if n > 1 and self.shared == tuple(row for row in range(held.shape[0]) for _ in range(n)):
            return held, n
        return self._laid_out(held), 1

    def _laid_out(self, tensor: Tensor) -> Tensor:
        if self._own_rows:
            return tensor
        return tensor.index_select(0, on_device(self.shared, self.device))

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> TensorMemory:
        if len({tensor.shape[0] for tensor in tensors.values()}) != 1:
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            raise ModelError(f"a layer's memory needs tensors with the same number of rows, not {shapes}")
        return cls(tensors)

    @classmethod
    def cat(cls, memories: Sequence[TensorMemory]) -> TensorMemory:
        shared: list[int] = []
        before = 0
        for memory in memories:
            shared += [before + row for row in memory.shared]
            before += next(iter(memory._held.values())).shape[0]
        return cls({name: torch.cat([m._held[name] for m in memories]) for name in memories[0]._held}, shared)


class Trace(ABC):
    """What one layer keeps of one read; gives the memory at any tap."""

    @abstractmethod
    def tap(self, taps: Taps, inputs: MixerInputs | None) -> LayerMemory:
        """The memory of taps.rows rows: row r after taps.counts[r] tokens of document taps.documents[r], with gradient.

        After a read with Keep.ENDS, every tap is the end of a document. After one with Keep.SPARSE, `inputs` gives the
        mixer inputs of tokens to read again, indexed as layout.starts[g] + offset; else it is None.
        """


class EndsOnly(Trace):
    """A trace that holds only the memory at some documents' ends: row i is the end of document taps.documents[i]."""

    def __init__(self, ends: LayerMemory, taps: Taps) -> None:
        self._ends, self._row = ends, {g: i for i, g in enumerate(taps.documents)}

    def tap(self, taps: Taps, inputs: MixerInputs | None) -> LayerMemory:
        rows = [self._row[g] for g in taps.documents]
        return self._ends if rows == list(range(self._ends.rows)) else self._ends.select(torch.tensor(rows))


class TokenMixer(nn.Module, ABC):
    """The layer of a block that looks at earlier tokens; the other layers work on each token alone.

    `steady`: without gradient, every read of one token a row is the same operations on tensors of the same shapes, and
    brings no value to the host.
    """

    steady = False

    @abstractmethod
    def forward(self, x: Tensor, layout: Layout, memory: LayerMemory | None, keep: Keep) -> tuple[Tensor, Trace]:
        """Read x [N, D] (normalised by the block), documents as in `layout`.

        `memory` has one row for each document, or is None if all start fresh; row g has read layout.positions[g]
        tokens. Returns y [N, D], to be added to the residual stream, and the trace.
        Must be a pure function of its arguments and the parameters: gradient checkpointing runs it twice.
        """

    @abstractmethod
    def fresh(self, rows: int, device: torch.device, dtype: torch.dtype) -> LayerMemory:
        """The memory of `rows` sequences that have read nothing, for a model with weights in `dtype`."""


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype of states for a model in `dtype`: float64 for float64, else float32."""
    return torch.promote_types(dtype, torch.float32)
