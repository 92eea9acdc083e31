"""Arms side by side: what is known of each, the baseline that it is compared with, and their table.

The table has arms in rows and metrics in columns. Each value has its interval, and its paired difference to the
baseline where both were scored on the same samples. The baseline is the arm `sft` of the phase; at test time it is the
model as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from refine.evaluation.intervals import Estimate
from refine.evaluation.record import Evaluated, Evaluation
from refine.metric_names import smaller_is_better
from refine.reports import paper_tables
from refine.reports.cells import Cell, Row
from refine.reports.comparison import Comparison, estimates_of
from refine.reports.differences import values
from refine.reports.evaluations import TEST_TIME, evaluation_of
from refine.reports.paper_columns import Column, Stratum
from refine.reports.paper_tables import PHASES, ArmRow, Table, baseline_of
from refine.tracking.tags import EVALUATION_RUN, SEED

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from refine.phases.stages import Scored


@dataclass(frozen=True)
class Arm:
    """What is known of one row. estimates: metric -> value, count and interval. evaluated: the evaluation of each seed,
    with every sample's score; empty where only the metrics are left. experiment: the baseline is sought there first.
    scored_on: hash of the samples; the baseline's is the same."""

    phase: str
    arm: str
    label: str
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    evaluated: tuple[Evaluated, ...] = ()
    experiment: str = ""
    scored_on: str = ""
    version: int | None = None
    champion: bool = False


@dataclass(frozen=True)
class MetricColumn(Column):
    """The mean of `metrics`, given by their tracked names. name: of the column in files."""

    name: str = ""
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True)
class Line(ArmRow):
    """An arm's row of the table."""

    version: int | None = None
    champion: bool = False
    is_baseline: bool = False


def metric_column(
    metrics: Sequence[str], title: str = "", name: str = "", scale: float = 1.0, digits: int = 3
) -> MetricColumn:
    """The mean over `metrics`, each with equal weight. One metric gives it its name."""

    def strata(evaluation: Evaluation) -> list[Stratum] | None:
        known = values(evaluation)
        return [known[one] for one in metrics] if all(one in known for one in metrics) else None

    name = name or metrics[0]
    return MetricColumn(title or name, strata, scale, digits, smaller_is_better(metrics[0]), name, tuple(metrics))


def of_versions(client: MlflowClient, found: Comparison, numbered: bool = False) -> list[Arm]:
    """The arms of registered versions. numbered: their labels begin with the version's number."""
    arms = []
    for n, one in enumerate(found.versions):
        name = one.arm or one.phase or "model"
        evaluation = evaluation_of(client, one.tags.get(EVALUATION_RUN, ""))
        arm = Arm(
            one.phase,
            one.arm,
            f"{one.number} {name}" if numbered else name,
            {row.label: known for row in found.rows if (known := row.cells[n].estimate) is not None},
            _seed(one.phase, one.arm, int(one.tags.get(SEED, 0)), evaluation),
            one.experiment,
            one.evaluation,
            one.number,
            one.is_champion,
        )
        arms.append(arm)
    return arms


def of_test_time(client: MlflowClient, scores: Sequence[Scored]) -> list[Arm]:
    """The arms of test-time training, after the same model as it is (`none`); empty if there is no such arm.

    All were scored on the prompts of one experiment, so they are compared sample by sample."""
    adapted = [one for one in scores if one.target.adapted_by]
    if not adapted:
        return []
    model = adapted[0].target.model
    base = next(one for one in scores if one.target.model == model and not one.target.adapted_by)
    none = {name: value for name, value in base.metrics.items() if name in adapted[0].metrics}
    rows = [(baseline_of(TEST_TIME), base, none), *((one.target.arm, one, one.metrics) for one in adapted)]
    return [
        Arm(TEST_TIME, arm, arm, estimates_of(metrics), _seed(TEST_TIME, arm, 0, _alike(client, one.run_id)))
        for arm, one, metrics in rows
    ]


def _alike(client: MlflowClient, run_id: str) -> Evaluation | None:
    """A run's evaluation without the hash of all that it was scored on: at test time that is a part, the questions."""
    found = evaluation_of(client, run_id)
    return found and replace(found, settings={})


def _seed(phase: str, arm: str, seed: int, evaluation: Evaluation | None) -> tuple[Evaluated, ...]:
    return () if evaluation is None else (Evaluated(phase, arm, seed, evaluation),)


def of_evaluations(evaluated: Sequence[Evaluated]) -> list[Arm]:
    """The arms of an experiment's evaluations, with all their seeds, in the paper's order."""
    return [
        Arm(phase, arm, arm or phase, estimates_of(members[0].evaluation.metrics()), tuple(members))
        for (phase, arm), members in paper_tables.by_arm(evaluated).items()
    ]


def table(arms: Sequence[Arm], columns: Sequence[MetricColumn], title: str = "") -> Table:
    """The arms' table, by phase; columns that no arm has are left out."""
    ordered = sorted(arms, key=lambda one: PHASES.index(one.phase) if one.phase in PHASES else len(PHASES))
    rows = [_line(one, ordered, columns) for one in ordered]
    kept = [n for n in range(len(columns)) if any(row.cells[n].estimate for row in rows)]
    rows = [replace(row, cells=tuple(row.cells[n] for n in kept)) for row in rows]
    return Table(title, tuple(columns[n] for n in kept), tuple(rows))


def all_columns(arms: Iterable[Arm]) -> list[MetricColumn]:
    """A column for each metric that an arm has."""
    return [metric_column([name]) for name in dict.fromkeys(name for one in arms for name in one.estimates)]


def differences_table(arms: Sequence[Arm], differences: Sequence[Row]) -> Table:
    """`to_champion`'s rows, with a cell for each of `arms`, as a table of the arms that were compared."""
    columns = [metric_column([row.label], digits=4) for row in differences]
    made = []
    for n, arm in enumerate(arms):
        changes = [row.cells[n].difference for row in differences]
        if any(changes):
            cells = tuple(Cell(change, difference=change) for change in changes)
            made.append(Line(arm.label, cells, arm.phase, arm.arm, (), arm.version))
    return Table("", tuple(columns), tuple(made))


def _line(arm: Arm, arms: Sequence[Arm], columns: Sequence[MetricColumn]) -> Line:
    baseline = _baseline(arm, arms)
    cells = tuple(Cell(_estimate(arm, one), difference=_difference(arm, baseline, one)) for one in columns)
    seeds = tuple(one.seed for one in arm.evaluated)
    known = arm.arm == baseline_of(arm.phase)
    return Line(arm.label, cells, arm.phase, arm.arm, seeds, arm.version, arm.champion, known)


def _baseline(arm: Arm, arms: Sequence[Arm]) -> Arm | None:
    """The arm that `arm` is compared with: of the same phase and samples, if it can be of the same experiment. Of
    several the newest."""
    wanted = baseline_of(arm.phase)
    known = [one for one in arms if (one.phase, one.arm, one.scored_on) == (arm.phase, wanted, arm.scored_on)]
    if arm.arm == wanted or not known:
        return None
    return ([one for one in known if one.experiment == arm.experiment] or known)[-1]


def _estimate(arm: Arm, column: MetricColumn) -> Estimate | None:
    """From the recorded metric, or over the samples of all metrics and seeds. Without samples it has no interval."""
    known = [arm.estimates[name] for name in column.metrics if name in arm.estimates]
    if len(known) < len(column.metrics):
        return None
    if len(known) == 1 and len(arm.evaluated) <= 1:
        return known[0]
    over_samples = paper_tables.estimate([column.values(one.evaluation) for one in arm.evaluated])
    return over_samples or Estimate(float(np.mean([one.value for one in known])), 0, None, None)


def _difference(arm: Arm, baseline: Arm | None, column: MetricColumn) -> Estimate | None:
    return None if baseline is None else paper_tables.difference(arm.evaluated, baseline.evaluated, column)
