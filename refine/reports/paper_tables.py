"""An experiment's evaluations as the paper's tables (arXiv 2602.16704): arms of phases in rows, tasks in columns.

Every value has its interval, the best of a column is marked, and each arm is compared with the SFT arm of its phase
(test time: with the model as it is), sample by sample. `refine.reports.paper_columns` lists the tables and their
columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from refine.errors import DataError
from refine.evaluation.intervals import Estimate, mean_over_strata
from refine.evaluation.record import Evaluated
from refine.reports.cells import Cell, Row, mark_best
from refine.reports.paper_columns import Column, Stratum, columns_of_tables
from refine.settings.arms import OWN_ARMS

PHASES = ("start", "mid", "post", "test_time")
BASELINES = {"test_time": "none"}  # phase -> the arm that the others are compared with; other phases: sft
PHASE_NAMES = {"start": "start", "mid": "mid-training", "post": "post-training", "test_time": "test time"}
ARM_NAMES = {
    "none": "none",
    "sft": "SFT",
    "refine": "REFINE",
    "nested_sft": "nested SFT",
    "nested_refine": "nested REFINE",
}


@dataclass(frozen=True)
class ArmRow(Row):
    """The row of a phase's arm, in all its seeds. Its label is `mid-training: REFINE`."""

    phase: str
    arm: str
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Table:
    """One of the paper's tables."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[ArmRow, ...]


def baseline_of(phase: str) -> str:
    """The arm of `phase` that its other arms are compared with."""
    return BASELINES.get(phase, "sft")


def tables(evaluated: Sequence[Evaluated]) -> list[Table]:
    """The tables that the evaluations have scores for. Raises DataError if there are none."""
    if not evaluated:
        raise DataError("no evaluations to report on; `make run` or `refine evaluate models:/NAME@ALIAS` records them")
    groups = by_arm(evaluated)
    made = []
    for title, columns in columns_of_tables([one.evaluation for one in evaluated]):
        rows = [_row(key, members, groups, columns) for key, members in groups.items()]
        rows = [row for row in rows if any(cell.estimate for cell in row.cells)]
        if rows:
            made.append(Table(title, tuple(columns), tuple(_marked(rows, columns))))
    if not made:
        raise DataError("the evaluations hold no scores to report on")
    return made


def by_arm(evaluated: Sequence[Evaluated]) -> dict[tuple[str, str], list[Evaluated]]:
    """(phase, arm) -> its evaluations in the paper's order, by seed. Of several with one seed the last counts."""
    order = sorted(
        {(one.phase, one.arm) for one in evaluated},
        key=lambda key: (_place(key[0], PHASES), _place(key[1], OWN_ARMS.get(key[0], ()))),
    )
    found = {}
    for phase, arm in order:
        by_seed = {one.seed: one for one in evaluated if (one.phase, one.arm) == (phase, arm)}
        found[phase, arm] = [by_seed[seed] for seed in sorted(by_seed)]
    return found


def _place(name: str, known: Sequence[str]) -> tuple[int, str]:
    return (known.index(name), "") if name in known else (len(known), name)


def _row(
    key: tuple[str, str],
    members: list[Evaluated],
    groups: dict[tuple[str, str], list[Evaluated]],
    columns: Sequence[Column],
) -> ArmRow:
    phase, arm = key
    baseline = groups.get((phase, baseline_of(phase)), []) if arm != baseline_of(phase) else []
    cells = tuple(
        Cell(
            estimate([column.values(one.evaluation) for one in members]),
            difference=difference(members, baseline, column),
        )
        for column in columns
    )
    label = f"{PHASE_NAMES.get(phase, phase)}: {ARM_NAMES.get(arm, arm)}"
    return ArmRow(label, cells, phase, arm, tuple(one.seed for one in members))


def estimate(found: Sequence[list[Stratum] | None], differences: bool = False) -> Estimate | None:
    """The estimate over the strata of all seeds; None if a seed lacks one.

    Raises DataError if the seeds have different numbers of samples.
    """
    if not found or any(strata is None for strata in found):
        return None
    by_task = list(zip(*(strata for strata in found if strata is not None), strict=True))
    if any(len({len(values) for values in task}) > 1 for task in by_task):
        raise DataError(
            "seeds of one arm were scored on different numbers of samples: evaluate them on the same prompts"
        )
    return mean_over_strata([np.array(task) for task in by_task], differences)


def difference(members: Sequence[Evaluated], baseline: Sequence[Evaluated], column: Column) -> Estimate | None:
    """members - baseline by seed and sample, over the seeds that were scored on the same inputs."""
    pairs = []
    for one in members:
        for other in baseline:
            if one.seed != other.seed or _scored_on(one) != _scored_on(other):
                continue
            ours, theirs = column.values(one.evaluation), column.values(other.evaluation)
            if ours is not None and theirs is not None:
                pairs.append([tuple(np.subtract(a, b)) for a, b in zip(ours, theirs, strict=True)])
    return estimate(pairs, differences=True)


def _scored_on(one: Evaluated) -> object:
    return one.evaluation.settings.get("scored_on")


def _marked(rows: Sequence[ArmRow], columns: Sequence[Column]) -> list[ArmRow]:
    """The rows with the best value of each column marked."""
    found = zip(columns, zip(*(row.cells for row in rows), strict=True), strict=True)
    by_column = [mark_best(cells, column.less_is_better) for column, cells in found]
    return [replace(row, cells=cells) for row, cells in zip(rows, zip(*by_column, strict=True), strict=True)]
