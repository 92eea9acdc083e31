"""What an evaluation found: one record that goes to JSON, a table, tracked metrics and a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from refine.errors import DataError
from refine.evaluation.intervals import Estimate, mean_of_scores
from refine.system.files import write_text

EVALUATION_FILE = "evaluation.json"


Interval = tuple[float, float] | None


@dataclass(frozen=True)
class PositionScore:
    """Loss and accuracy of predicting the `first`-th to the `last`-th token of a sequence (the 1st is given).

    loss_interval: 95 % bootstrap interval over sequences, None for a single one. sequence_losses: the mean loss in each
    sequence that reaches so far, in their order; empty in records that an older version wrote.
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
    models can be compared sequence by sequence.
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


@dataclass(frozen=True)
class Answer:
    """text: what was written, without the end token. tokens: how many were written.

    prompt_tokens: how many were read. cut: how many were taken out of the middle of a prompt that was too long.
    log_prob: mean log-probability of the reference answer's tokens, given the prompt [nats per token].
    adapt_seconds: what adapting to this prompt took [s].
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

    def interval(self) -> tuple[float, float]:
        """95 % interval from the standard error."""
        reach = 1.96 * (self.error or 0.0)
        return self.value - reach, self.value + reach


@dataclass(frozen=True)
class TaskScore:
    """The score of one task at one length.

    score: 0 to 1, with its interval. log_prob: mean log-probability of the reference answers [nats per token].
    cut: prompts that lost their middle. scores, log_probs: of each sample, in the prompts' order, so that two models
    can be compared sample by sample. adapt_seconds: mean time that adapting to a prompt took [s].
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
        """Of a Markdown table; `which` is said beside what was measured."""
        cut = f" ({self.cut} cut in the middle)" if self.cut else ""
        name, samples = f"{self.task} at {self.length}", self.score.samples
        span, spread = _span(self.score.low, self.score.high), _span(self.log_prob.low, self.log_prob.high)
        told = [
            f"| {name}: score{which} | {self.score.value:.4f} | {span} | {samples}{cut} |",
            f"| {name}: log-prob. of the answer{which} | {self.log_prob.value:.4f} | {spread} | {samples} |",
        ]
        if self.adapt_seconds:
            told.append(f"| {name}: adapting to a prompt [s] | {self.adapt_seconds:.4f} | | {samples} |")
        return told


@dataclass(frozen=True)
class Evaluation:
    """model: name or folder. next_token: by document set (`val`, `second_domain`, ...). harness: lm-eval's scores.
    seconds: what the whole took [s]."""

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
            found |= {f"{name}/loss": score.loss, f"{name}/accuracy": score.accuracy}
            found |= {f"{name}/tokens": score.tokens, f"{name}/sequences": score.sequences}
            for which, interval in (("loss", score.loss_interval), ("accuracy", score.accuracy_interval)):
                if interval is not None:
                    found |= {f"{name}/{which}_low": interval[0], f"{name}/{which}_high": interval[1]}
        for one in self.tasks:
            prefix = f"eval/{one.task}/{one.length}"
            found |= {f"{prefix}/score": one.score.value, f"{prefix}/samples": one.score.samples}
            found |= {f"{prefix}/log_prob": one.log_prob.value, f"{prefix}/cut": one.cut}
            for which, estimate in (("score", one.score), ("log_prob", one.log_prob)):
                if estimate.low is not None and estimate.high is not None:
                    found |= {f"{prefix}/{which}_low": estimate.low, f"{prefix}/{which}_high": estimate.high}
            if one.adapt_seconds:
                found[f"{prefix}/adapt_seconds"] = one.adapt_seconds
        for lm_eval in self.harness:
            prefix = f"eval/{lm_eval.task}/{lm_eval.metric}"
            found |= {f"{prefix}/score": lm_eval.value, f"{prefix}/samples": lm_eval.samples}
            if lm_eval.error is not None:
                low, high = lm_eval.interval()
                found |= {f"{prefix}/score_low": low, f"{prefix}/score_high": high}
        return {name: float(value) for name, value in found.items()}

    def table(self, before: Evaluation | None = None) -> str:
        """A Markdown table: one row a measurement, each with its count and interval. `before`: the scores of the same
        prompts without adapting to them, which then stand beside those after it, and what adapting took."""
        unadapted = {} if before is None else {(one.task, one.length): one for one in before.tasks}
        rows = ["| measured | value | 95 % interval | samples |", "|---|---|---|---|"]
        for name, score in self.next_token.items():
            for which, value, interval in (
                ("loss [nats/token]", score.loss, score.loss_interval),
                ("accuracy", score.accuracy, score.accuracy_interval),
            ):
                span = _span(*interval) if interval else ""
                rows.append(f"| {name} {which} | {value:.4f} | {span} | {score.sequences} ({score.tokens} tokens) |")
        for one in self.tasks:
            if (first := unadapted.get((one.task, one.length))) is not None:
                rows += first.rows(", before adapting")
            rows += one.rows(", adapted" if one.adapt_seconds else "")
        for lm_eval in self.harness:
            span = "" if lm_eval.error is None else _span(*lm_eval.interval())
            rows.append(
                f"| lm-eval {lm_eval.task} {lm_eval.metric} | {lm_eval.value:.4f} | {span} | {lm_eval.samples} |"
            )
        return "\n".join(rows)

    def save(self, folder: str | Path) -> Path:
        """`folder`/evaluation.json, whole or not at all."""
        return write_text(
            Path(folder) / EVALUATION_FILE, json.dumps(asdict(self) | {"metrics": self.metrics()}, indent=1)
        )

    @staticmethod
    def load(path: str | Path) -> Evaluation:
        """What `save` wrote, from the file or its folder. Raises DataError: no such file, or another's."""
        path = Path(path)
        path = path / EVALUATION_FILE if path.is_dir() else path
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            next_token = {name: _next_token(score) for name, score in values["next_token"].items()}
            tasks = tuple(_task(task) for task in values["tasks"])
            harness = tuple(HarnessScore(**score) for score in values["harness"])
            return Evaluation(values["model"], next_token, tasks, harness, values["seconds"], values["settings"])
        except FileNotFoundError:
            raise DataError(f"{path}: no such evaluation; `refine evaluate` writes one") from None
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not an evaluation ({type(error).__name__}: {error})") from None


def _next_token(values: dict[str, Any]) -> NextTokenScore:
    positions = tuple(_position(one) for one in values["by_position"])
    intervals = {name: tuple(values[name]) if values[name] else None for name in ("loss_interval", "accuracy_interval")}
    sequences = {name: tuple(values[name]) for name in ("sequence_losses", "sequence_tokens")}
    return NextTokenScore(**(values | {"by_position": positions} | intervals | sequences))


def _position(values: dict[str, Any]) -> PositionScore:
    interval, losses = values.get("loss_interval"), values.get("sequence_losses", ())
    kept = {"loss_interval": tuple(interval) if interval else None, "sequence_losses": tuple(losses)}
    return PositionScore(**(values | kept))


def _task(values: dict[str, Any]) -> TaskScore:
    estimates = {name: Estimate(**values[name]) for name in ("score", "log_prob")}
    return TaskScore(**(values | estimates | {name: tuple(values[name]) for name in ("scores", "log_probs")}))


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.4f} to {high:.4f}"


@dataclass(frozen=True)
class Evaluated:
    """One evaluation of an experiment. phase: what trained the model last (start, mid, post, test_time)."""

    phase: str
    arm: str
    seed: int
    evaluation: Evaluation
