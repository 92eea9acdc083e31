"""Parameters that a format stores in other tensors: several as one, or one as several.

Works on tensors by name, in place, and on "meta" too. A group of which a part is missing stays as it is.
Shape legend: D hidden size · E experts · I inner width of an expert.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


class Regrouping(ABC):
    """One such difference between a format and the model. Names are those of tensor_names.py, before it the disk's."""

    @abstractmethod
    def in_use(self, stored: Iterable[str]) -> bool:
        """Whether tensors of these names are stored in this way."""

    @abstractmethod
    def parts(self, name: str) -> bool:
        """Whether the stored tensor `name` is a part of a group."""

    @abstractmethod
    def to_parameters(self, tensors: Tensors) -> None:
        """Replace the stored tensors of every complete group by the parameters."""

    @abstractmethod
    def to_stored(self, tensors: Tensors) -> None:
        """Replace the parameters of every complete group by the tensors that are stored."""


@dataclass(frozen=True)
class ExpertsApart(Regrouping):
    """`experts.7.gate_proj.weight` [I, D], `up_proj`, `down_proj` [D, I] of each expert instead of
    `experts.gate_up_proj` [E, 2I, D] and `experts.down_proj` [E, D, I]. number: E. The rest: the three's names."""

    number: int
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"

    def _match(self, name: str) -> re.Match[str] | None:
        return re.fullmatch(rf"(.*\.experts)\.(\d+)\.({self.gate}|{self.up}|{self.down})\.weight", name)

    def parts(self, name: str) -> bool:
        return self._match(name) is not None

    def in_use(self, stored: Iterable[str]) -> bool:
        return any(map(self.parts, stored))

    def to_parameters(self, tensors: Tensors) -> None:
        for where in {found[1] for found in map(self._match, tensors) if found}:
            names = {one: self._names(where, one) for one in (self.gate, self.up, self.down)}
            if not all(name in tensors for some in names.values() for name in some):
                continue
            gate, up, down = ([tensors.pop(name) for name in some] for some in names.values())
            tensors[f"{where}.gate_up_proj"] = torch.stack([torch.cat(pair) for pair in zip(gate, up, strict=True)])
            tensors[f"{where}.down_proj"] = torch.stack(down)

    def to_stored(self, tensors: Tensors) -> None:
        joined = ".experts.gate_up_proj"
        for where in [name.removesuffix(".gate_up_proj") for name in tensors if name.endswith(joined)]:
            if f"{where}.down_proj" not in tensors:
                continue
            both, down = tensors.pop(f"{where}.gate_up_proj"), tensors.pop(f"{where}.down_proj")
            gate, up = both.chunk(2, dim=1)
            for one, of_each in ((self.gate, gate), (self.up, up), (self.down, down)):
                tensors.update(zip(self._names(where, one), of_each, strict=True))

    def _names(self, where: str, one: str) -> list[str]:
        return [f"{where}.{e}.{one}.weight" for e in range(self.number)]


@dataclass(frozen=True)
class Interleaved(Regrouping):
    """Rows of several projections in one matrix, head by head: for each of `heads` groups, widths[0] rows of the first
    part, widths[1] of the second, ... `parameters`: names that replace `name`, and the number of parts that each takes,
    laid end to end."""

    name: str
    heads: int
    widths: tuple[int, ...]
    parameters: tuple[tuple[str, int], ...]

    def parts(self, name: str) -> bool:
        return name.endswith(f".{self.name}.weight")

    def in_use(self, stored: Iterable[str]) -> bool:
        return True

    def _names(self, where: str) -> list[str]:
        return [f"{where}{parameter}.weight" for parameter, _ in self.parameters]

    def to_parameters(self, tensors: Tensors) -> None:
        rows = self.heads * sum(self.widths)
        for stored in [name for name in tensors if self.parts(name) and len(tensors[name]) == rows]:
            parts = list(tensors.pop(stored).unflatten(0, (self.heads, -1)).split(self.widths, 1))
            for name, (_, number) in zip(
                self._names(stored.removesuffix(f"{self.name}.weight")), self.parameters, strict=True
            ):
                taken, parts = parts[:number], parts[number:]
                tensors[name] = torch.cat([part.flatten(0, 1) for part in taken])

    def to_stored(self, tensors: Tensors) -> None:
        first = f"{self.parameters[0][0]}.weight"
        for where in [name.removesuffix(first) for name in tensors if name.endswith(f".{first}")]:
            names = self._names(where)
            if not all(name in tensors for name in names):
                continue
            whole = torch.cat([tensors.pop(name) for name in names])
            parts = whole.split([self.heads * width for width in self.widths])
            grouped = torch.cat([part.unflatten(0, (self.heads, -1)) for part in parts], 1)
            tensors[f"{where}{self.name}.weight"] = grouped.flatten(0, 1)
