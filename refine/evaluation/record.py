"""What an evaluation found: one record, written as JSON, as a table and as tracked metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from refine.data.prompts.tasks import TASKS
from refine.errors import nearest
from refine.evaluation.intervals import Estimate, Interval, mean_of_scores, wilson
from refine.system.files import write_text
from refine.system.readers import in_form, mapping, read_json

EVALUATION_FILE = "evaluation.json"


@dataclass(frozen=True)
class PositionScore:
    """Loss and accuracy of predicting the `first`-th to the `last`-th token of a sequence (the 1st is given).

    loss_interval: 95 % bootstrap interval over sequences, None for a single one. sequence_losses: the mean loss in each
    sequence that is long enough, in their order; empty in records that an older version wrote.
    """

    first: int
    last: int
    loss: float
    accuracy: float
    tokens: int
    loss_interval: Interval = None
    sequence_losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class NextTokenScore:
    """loss: mean cross-entropy [nats per predicted token]. accuracy: share of tokens that were the likeliest.

    tokens: how many were predicted. Intervals are 95 % bootstrap intervals over sequences, None for a single one.
    sequence_losses, sequence_tokens: mean loss and predicted tokens of each sequence, in their order, so that two
    models can be compared sequence by sequence. marked_loss: mean cross-entropy of the tokens after each mark, None
    without marks; sequence_marked_losses: of each sequence that has marks, in their order.
    """

    loss: float
    accuracy: float
    tokens: int
    sequences: int
    by_position: tuple[PositionScore, ...]
    loss_interval: Interval
    accuracy_interval: Interval
    sequence_losses: tuple[float, ...]
    sequence_tokens: tuple[int, ...]
    marked_loss: float | None = None
    marked_loss_interval: Interval = None
    sequence_marked_losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class Answer:
    """text: the generated answer, without the end token. tokens: how many were generated.

    prompt_tokens: how many were read. cut: how many were removed from the middle of a prompt that was too long.
    log_prob: mean log-probability of the reference answer's tokens, given the prompt [nats per token].
    adapt_seconds: time to adapt to this prompt [s].
    """

    text: str
    tokens: int
    prompt_tokens: int
    cut: int
    log_prob: float
    adapt_seconds: float = 0.0


@dataclass(frozen=True)
class HarnessScore:
    """One metric of one lm-eval task. error: lm-eval's standard error, None where it gives none."""

    task: str
    metric: str
    value: float
    error: float | None
    samples: int

    @property
    def interval(self) -> Interval:
        """95 % interval: Wilson's of a share, which lm-eval's standard error gives away; of another mean from that
        error; None without one."""
        if self.error is None:
            return None
        if self.samples > 1 and 0 <= self.value <= 1:
            of_share = math.sqrt(self.value * (1 - self.value) / (self.samples - 1))
            if math.isclose(self.error, of_share, rel_tol=1e-6, abs_tol=1e-9):
                return wilson(self.value, self.samples)
        return self.value - 1.96 * self.error, self.value + 1.96 * self.error


@dataclass(frozen=True)
class TaskScore:
    """The score of one task at one length.

    score: 0 to 1, with its interval. log_prob: mean log-probability of the reference answers [nats per token].
    cut: prompts that lost their middle. scores, log_probs: of each sample, in the prompts' order, so that two models
    can be compared sample by sample. adapt_seconds: mean time to adapt to a prompt [s].
    """

    task: str
    length: int
    score: Estimate
    log_prob: Estimate
    cut: int
    scores: tuple[float, ...]
    log_probs: tuple[float, ...]
    adapt_seconds: float = 0.0

    @staticmethod
    def of(task: str, length: int, scores: list[float], answers: list[Answer]) -> TaskScore:
        """From the score and answer of each sample."""
        return TaskScore(
            task,
            length,
            mean_of_scores(scores),
            mean_of_scores([one.log_prob for one in answers]),
            sum(one.cut > 0 for one in answers),
            tuple(scores),
            tuple(one.log_prob for one in answers),
            sum(one.adapt_seconds for one in answers) / len(answers),
        )

    def rows(self, which: str = "") -> list[str]:
        """Its lines of the Markdown table; `which` follows the name of each score."""
        cut = f" ({self.cut} cut in the middle)" if self.cut else ""
        name, score, log_prob = f"{self.task} at {self.length}", self.score, self.log_prob
        lines = [
            _line(f"{name}: score{which}", score.value, score.interval, f"{score.samples}{cut}"),
            _line(f"{name}: log-prob. of the answer{which}", log_prob.value, log_prob.interval, score.samples),
        ]
        if self.adapt_seconds:
            lines.append(f"| {name}: adapting to a prompt [s] | {self.adapt_seconds:.4f} | | {score.samples} |")
        return lines


@dataclass(frozen=True)
class Evaluation:
    """model: name or folder. next_token: by document set (`val`, `second_domain`, ...). harness: lm-eval's scores.
    seconds: time that the evaluation took [s]."""

    model: str
    next_token: Mapping[str, NextTokenScore]
    tasks: tuple[TaskScore, ...]
    harness: tuple[HarnessScore, ...]
    seconds: float
    settings: Mapping[str, Any] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Every number by its tracked name: `val/loss`, `eval/<task>/<length>/score`, ... with counts and intervals."""
        found: dict[str, float] = {}
        for name, score in self.next_token.items():
            found |= _named(f"{name}/loss", score.loss, score.loss_interval)
            found |= _named(f"{name}/accuracy", score.accuracy, score.accuracy_interval)
            found |= {f"{name}/tokens": score.tokens, f"{name}/sequences": score.sequences}
            if score.marked_loss is not None:
                found |= _named(f"{name}/marked_loss", score.marked_loss, score.marked_loss_interval)
                found[f"{name}/marked_sequences"] = len(score.sequence_marked_losses)
        for one in self.tasks:
            prefix = f"eval/{one.task}/{one.length}"
            found |= _named(f"{prefix}/score", one.score.value, one.score.interval)
            found |= _named(f"{prefix}/log_prob", one.log_prob.value, one.log_prob.interval)
            found |= {f"{prefix}/samples": one.score.samples, f"{prefix}/cut": one.cut}
            if one.adapt_seconds:
                found[f"{prefix}/adapt_seconds"] = one.adapt_seconds
        for lm_eval in self.harness:
            prefix = f"eval/{lm_eval.task}/{lm_eval.metric}"
            found |= _named(f"{prefix}/score", lm_eval.value, lm_eval.interval)
            found[f"{prefix}/samples"] = lm_eval.samples
        return {name: float(value) for name, value in found.items()}

    def table(self, before: Evaluation | None = None) -> str:
        """A Markdown table with a line for each score, its interval and its count.

        before: the scores of the same prompts without adapting to them. Each stands above the score after adapting.
        """
        unadapted = {} if before is None else {(one.task, one.length): one for one in before.tasks}
        lines = ["| measured | value | 95 % interval | samples |", "|---|---|---|---|"]
        for name, score in self.next_token.items():
            samples = f"{score.sequences} ({score.tokens} tokens)"
            lines.append(_line(f"{name} loss [nats/token]", score.loss, score.loss_interval, samples))
            lines.append(_line(f"{name} accuracy", score.accuracy, score.accuracy_interval, samples))
            if score.marked_loss is not None:
                title, count = f"{name} loss after marks [nats/token]", len(score.sequence_marked_losses)
                lines.append(_line(title, score.marked_loss, score.marked_loss_interval, count))
        for one in self.tasks:
            if (first := unadapted.get((one.task, one.length))) is not None:
                lines += first.rows(", before adapting")
            lines += one.rows(", adapted" if one.adapt_seconds else "")
        for lm_eval in self.harness:
            name = f"lm-eval {lm_eval.task} {lm_eval.metric}"
            lines.append(_line(name, lm_eval.value, lm_eval.interval, lm_eval.samples))
        return "\n".join(lines)

    def save(self, folder: str | Path) -> Path:
        """Write `folder`/evaluation.json. Returns its path."""
        values = asdict(self) | {"metrics": self.metrics()}
        return write_text(Path(folder) / EVALUATION_FILE, json.dumps(values, indent=1, allow_nan=False))

    @staticmethod
    def load(path: str | Path) -> Evaluation:
        """Read what `save` wrote, from the file or its folder. Raises DataError if it is missing or no evaluation."""
        path = Path(path)
        path = path / EVALUATION_FILE if path.is_dir() else path
        values = read_json(path, "an evaluation", missing="no such evaluation; `refine evaluate` writes one")
        with in_form(path, "an evaluation"):
            found = TypeAdapter(Evaluation).validate_python(values)
            for one in found.tasks:
                if one.task not in TASKS:
                    raise ValueError(f"no task {one.task!r}{nearest(one.task, TASKS)}")
            return found


def recorded_metrics(folder: str | Path) -> tuple[dict[str, float], float, str]:
    """(metrics, seconds that it took, hash of what was scored or "") of the evaluation in `folder`. Raises DataError if
    it is missing or has none."""
    path = Path(folder) / EVALUATION_FILE
    values = read_json(path, "an evaluation")
    with in_form(path, "an evaluation"):
        metrics = mapping(values["metrics"], f"{path}: metrics", "scores")
        if odd := [name for name, value in metrics.items() if not _is_number(value)]:
            raise TypeError(f"metric {odd[0]!r} is no number")
        seconds, scored_on = values["seconds"], mapping(values.get("settings", {}), f"{path}: settings", "fields")
        if not _is_number(seconds):
            raise TypeError("seconds is no number")
        return metrics, seconds, str(scored_on.get("scored_on") or "")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Evaluated:
    """One evaluation of an experiment. phase: what trained the model last (start, mid, post, test_time)."""

    phase: str
    arm: str
    seed: int
    evaluation: Evaluation


def _named(name: str, value: float, interval: Interval) -> dict[str, float]:
    """A metric, and its bounds by their names."""
    bounds = {} if interval is None else {f"{name}_low": interval[0], f"{name}_high": interval[1]}
    return {name: value, **bounds}


def _line(name: str, value: float, interval: Interval, samples: int | str) -> str:
    """A line of the Markdown table, which has a column for intervals."""
    span = "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"
    return f"| {name} | {value:.4f} | {span} | {samples} |"
