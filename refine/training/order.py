"""The sequences of each optimizer step, and the seed of each sequence: functions of the run's seed alone.

Symbols: N rows of the data set · S sequences of an optimizer step, all processes together · B sequences of one
forward pass of one process · W processes.

A stream holds the rows of all epochs, one epoch after another, each in its own permutation. Every step takes the next
S rows. So every row counts once per epoch, no partial batch is dropped or padded, and neither B nor W changes what a
step trains on.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from refine.errors import TrainingError

STAND_IN = -1  # the row of a process that has none left in a pass: the model reads it, no metric counts it


def derived_seed(*parts: int | str) -> int:
    """A seed in [0, 2^63) from any parts: the same on every machine and in every process."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def sequence_seed(run_seed: int, step: int | str, sequence: int) -> int:
    """The seed of all draws of one sequence in one step. `step` may also name a purpose, like "validation"."""
    return derived_seed("sequence", run_seed, step, sequence)


@dataclass(frozen=True)
class Pass:
    """One forward pass of one process: its rows, and what it trains of them (`kind`, `refine.training.dataset`)."""

    kind: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Stream:
    """The order in which a run trains on the rows of a data set.

    rows: N. sequences: rows taken in all. per_step: S. seed: of the permutations; None keeps the order of the rows.
    kind: what a step trains of each row.
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
        """The kind and the rows of optimizer step `step` (from 0)."""
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
    """The order of nested post-training: for each batch of `samples`, `prompt_steps` steps on its prompts, each on an
    equal share of them, then one step on all its answers (docs/method.md, Phases).

    first_kind: what the former train of each row, "prompts" or "tokens" (prompt and answer).
    """

    samples: Stream
    prompt_steps: int
    first_kind: str = "prompts"

    @property
    def steps(self) -> int:
        """Optimizer steps on prompts and on answers together."""
        batches = self.samples.steps
        if batches == 0:
            return 0
        return (batches - 1) * (self.prompt_steps + 1) + self._shares(len(self.samples.taken(batches - 1))) + 1

    def step(self, step: int) -> tuple[str, list[int]]:
        """The kind (`first_kind` or "answers") and the rows of optimizer step `step` (from 0)."""
        batch, inner = divmod(step, self.prompt_steps + 1)
        rows = self.samples.taken(batch)
        shares = self._shares(len(rows))
        if inner == shares:
            return "answers", rows
        return self.first_kind, rows[inner * len(rows) // shares : (inner + 1) * len(rows) // shares]

    def _shares(self, rows: int) -> int:
        """Steps on the prompts of a batch of `rows` rows: fewer in a small last batch, as each needs a row."""
        return min(self.prompt_steps, rows)

    def epochs(self, steps: int) -> float:
        """Passes through the data after `steps` steps."""
        batches = self.samples.steps if steps >= self.steps else steps // (self.prompt_steps + 1)
        return self.samples.epochs(batches)


def refuse_other_rows(stream: Stream | NestedStream, step: int, epochs: float) -> None:
    """Raise TrainingError unless `stream` has made `epochs` passes through the data after `step` steps, as the run of a
    checkpoint had: else the steps that follow would skip rows or take them twice."""
    rows = (stream.samples if isinstance(stream, NestedStream) else stream).rows
    if abs(stream.epochs(step) - epochs) * rows >= 0.5:
        raise TrainingError(
            f"the checkpoint ended step {step} after {epochs:.6g} epochs, but this run ends it after "
            f"{stream.epochs(step):.6g}, so rows would be skipped or taken twice (the last step of num_train_epochs "
            "may be smaller than the others): keep the data, the sequences of a step and num_train_epochs, resume "
            "from an earlier checkpoint, or use another output_dir"
        )


@functools.lru_cache(maxsize=4)  # two epochs of two streams
def _permutation(rows: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(derived_seed("order", seed, epoch))
    return torch.randperm(rows, generator=generator).tolist()


class Passes(torch.utils.data.Sampler[list[Pass]]):
    """One process's work: for each optimizer step, ceil(S / (B W)) passes of at most B rows.

    Up to B·W rows are dealt to the processes in turn. A process without a row reads a STAND_IN, so that all processes
    make the same number of passes.
    """

    def __init__(self, stream: Stream | NestedStream, per_pass: int, processes: int = 1, process: int = 0) -> None:
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
