"""Which sequences an optimizer step takes, and the seed of each: a function of the run's seed alone.

Symbols: N rows of the data set · S sequences of an optimizer step, all processes together · B sequences of one
forward pass of one process · W processes.

The rows of one epoch after another form one stream, each epoch a permutation of its own; step s takes the next S of
it. So every row counts once an epoch, no partial batch is dropped or filled up, and neither B nor W changes what a
step sees (METHOD: chance belongs to the sequence).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

STAND_IN = -1  # in place of a row for a process that has none left in a pass: it is read, and counts for nothing


def derived_seed(*parts: int | str) -> int:
    """A seed in [0, 2^63) from any parts, the same on every machine and for every process."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def sequence_seed(run_seed: int, step: int | str, sequence: int) -> int:
    """The seed of all draws of one sequence in one step (`step` may also name a purpose, such as "validation")."""
    return derived_seed("sequence", run_seed, step, sequence)


@dataclass(frozen=True)
class Pass:
    """One forward pass of one process: which rows, and what of them is trained (see `refine.training.dataset`)."""

    kind: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Stream:
    """The order in which the rows of a data set are trained on.

    rows: N. sequences: how many are taken in all. per_step: S. seed: of the permutations; None keeps the rows' order.
    kind: what of a row is trained.
    """

    rows: int
    sequences: int
    per_step: int
    seed: int | None
    kind: str = "tokens"

    @property
    def steps(self) -> int:
        """Optimizer steps; the last one may be smaller."""
        return -(-self.sequences // self.per_step)

    def step(self, step: int) -> tuple[str, list[int]]:
        """What optimizer step `step` (from 0) trains: a kind, and rows in the stream's order."""
        return self.kind, self.taken(step)

    def taken(self, step: int) -> list[int]:
        """The rows of step `step`."""
        first = step * self.per_step
        return [self._row(place) for place in range(first, min(first + self.per_step, self.sequences))]

    def epochs(self, steps: int) -> float:
        """Passes through the data after `steps` steps."""
        return min(steps * self.per_step, self.sequences) / self.rows

    def _row(self, place: int) -> int:
        epoch, index = divmod(place, self.rows)
        return index if self.seed is None else _permutation(self.rows, self.seed, epoch)[index]


@dataclass(frozen=True)
class NestedStream:
    """Post-training's order: for each batch of `samples`' rows `prompt_steps` steps on their prompts, an equal share of
    the batch each, then one step on the answers of the whole batch (METHOD, post-training)."""

    samples: Stream
    prompt_steps: int

    @property
    def steps(self) -> int:
        """Optimizer steps, those on prompts and those on answers."""
        batches = self.samples.steps
        if batches == 0:
            return 0
        return (batches - 1) * (self.prompt_steps + 1) + self._shares(len(self.samples.taken(batches - 1))) + 1

    def step(self, step: int) -> tuple[str, list[int]]:
        """What optimizer step `step` (from 0) trains: "prompts" or "answers", and rows."""
        batch, inner = divmod(step, self.prompt_steps + 1)
        rows = self.samples.taken(batch)
        shares = self._shares(len(rows))
        if inner == shares:
            return "answers", rows
        return "prompts", rows[inner * len(rows) // shares : (inner + 1) * len(rows) // shares]

    def _shares(self, rows: int) -> int:
        """Steps on the prompts of a batch of `rows`: none is without a row, so a small last batch has fewer."""
        return min(self.prompt_steps, rows)

    def epochs(self, steps: int) -> float:
        """Passes through the data after `steps` steps."""
        batches = self.samples.steps if steps >= self.steps else steps // (self.prompt_steps + 1)
        return self.samples.epochs(batches)


_last: dict[tuple[int, int, int], list[int]] = {}


def _permutation(rows: int, seed: int, epoch: int) -> list[int]:
    key = (rows, seed, epoch)
    if key not in _last:
        while len(_last) >= 4:  # two epochs of two streams: enough, and bounded
            _last.pop(next(iter(_last)))
        generator = torch.Generator().manual_seed(derived_seed("order", seed, epoch))
        _last[key] = torch.randperm(rows, generator=generator).tolist()
    return _last[key]


class Passes(torch.utils.data.Sampler[list[Pass]]):
    """One process's work: for each optimizer step, ceil(S / (B W)) passes of at most B rows.

    Up to B·W rows are dealt to the processes in turn; one that gets none reads a STAND_IN, so that all processes make
    the same number of passes.
    """

    def __init__(self, stream: Any, per_pass: int, processes: int = 1, process: int = 0) -> None:
        self.stream, self.per_pass, self.processes, self.process = stream, per_pass, processes, process

    def __len__(self) -> int:
        return self.stream.steps

    def __iter__(self) -> Iterator[list[Pass]]:
        for step in range(self.stream.steps):
            yield self.passes(step)

    def passes(self, step: int) -> list[Pass]:
        """This process's passes of optimizer step `step`."""
        kind, rows = self.stream.step(step)
        together = self.per_pass * self.processes
        shares = [rows[first : first + together] for first in range(0, len(rows), together)]
        return [Pass(kind, tuple(share[self.process :: self.processes]) or (STAND_IN,)) for share in shares]
