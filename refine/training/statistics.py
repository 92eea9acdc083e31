"""The metrics of optimizer steps: means over whole steps, so micro-batches do not change them.

Shapes: B sequences of a pass · T tokens · c positions · n rollouts of a position · k tokens of a rollout
        L layers with mixtures · E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from refine.metric_names import MARKED_TOKENS, QUANTILES, quantile
from refine.models.mixture import RouterCounts
from refine.objective.candidates import candidates
from refine.objective.documents import Documents
from refine.objective.result import StepResult
from refine.settings.objective import ObjectiveSettings
from refine.training import reward_histograms

R = TypeVar("R")
SUMS = (
    "tokens", "read", "ntp_tokens", "ntp_loss", "correct", "entropy", "marked_loss", "marked_tokens", "focus_loss",
    "nsp_loss", "rollouts", "rollout_tokens", "clipped", "answer_tokens", "answer_loss", "answer_correct",
)  # fmt: skip
"""All names in `StepStatistics.sums`."""


@dataclass(frozen=True)
class Counts:
    """The denominators of an optimizer step or a validation, over all passes and processes."""

    tokens: int  # that the model reads
    ntp_tokens: int  # that it predicts
    rollout_tokens: int  # that it samples: c n k per document, fewer in a short one
    answer_tokens: int = 0
    focus_tokens: int = 0  # true tokens after its positions: c k per document, fewer in a short one

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(x + y for x, y in zip(self.numbers(), other.numbers(), strict=True)))

    def numbers(self) -> tuple[int, ...]:
        """The counts, in the order of their names above."""
        return astuple(self)

    def lacks_positions(self, objective: ObjectiveSettings) -> bool:
        """Whether `objective` selects positions in a step on texts, but no text has one."""
        return objective.uses_positions and not (self.rollout_tokens or self.focus_tokens or self.answer_tokens)


def counts_of(batch: dict[str, Any], objective: ObjectiveSettings | None) -> Counts:
    """What one batch contributes to its step's denominators. Without `objective` no positions are counted.

    This is known before any forward pass: one position is drawn from each chunk that has an admissible one
    (`refine.objective.candidates`)."""
    if not batch["counted"]:
        return Counts(0, 0, 0)
    rows, width = batch["tokens"].shape
    lengths = [length for row in batch["lengths"] or [[width]] * rows for length in row]
    if batch["kind"] == "answers":
        return Counts(sum(lengths), 0, 0, sum(lengths) - sum(batch["prompts"]))
    sampled = focused = 0
    if objective is not None and objective.uses_positions:
        documents = Documents((rows, width), batch["lengths"], batch["marks"])
        true_tokens = objective.rollout_length * sum(
            len(one.spans) for one in candidates(documents, batch["tokens"], objective)
        )
        sampled = objective.rollouts * true_tokens if objective.nsp_weight > 0 else 0
        focused = true_tokens if objective.focus_weight > 0 else 0
    return Counts(sum(lengths), sum(length - 1 for length in lengths), sampled, focus_tokens=focused)


def at_marks(values: Tensor, batch: dict[str, Any]) -> Iterator[Tensor]:
    """Of values [B, T], about the token after each: those of the MARKED_TOKENS tokens after each mark, fewer at the end
    of a document."""
    for document in Documents(batch["tokens"].shape, batch["lengths"], batch["marks"]).all:
        for mark in document.marks:
            first, end = document.start + mark - 1, document.start + document.length - 1
            yield values[document.row, first : min(first + MARKED_TOKENS, end)]


def on_host(results: Sequence[R]) -> list[R]:
    """The results (dataclasses of tensors, and of dicts of them) without graph and on the host, in one transfer."""
    tensors: list[Tensor] = []

    def noted(x: Any) -> Any:
        if isinstance(x, dict):
            return {name: noted(value) for name, value in x.items()}
        if not isinstance(x, Tensor):
            return None
        tensors.append(x.detach())
        return len(tensors) - 1

    def taken(x: Any, place: Any) -> Any:
        if isinstance(x, dict):
            return {name: taken(value, place[name]) for name, value in x.items()}
        return x if place is None else moved[place]

    given: list[Any] = list(results)
    places = [{one.name: noted(getattr(result, one.name)) for one in fields(result)} for result in given]
    moved = _moved_to_host(tensors)
    return [
        replace(result, **{name: taken(getattr(result, name), place) for name, place in known.items()})
        for result, known in zip(given, places, strict=True)
    ]


def _moved_to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of one device and any dtypes, bit for bit."""
    if not tensors or tensors[0].device.type == "cpu":
        return list(tensors)
    together = torch.cat([x.contiguous().view(-1).view(torch.uint8) for x in tensors]).cpu()
    parts = together.split([x.numel() * x.element_size() for x in tensors])
    return [part.clone().view(x.dtype).view(x.shape) for part, x in zip(parts, tensors, strict=True)]


class StepStatistics:
    """Collects the results of passes, and turns them into one row of metrics.

    `sums`: over passes. `values`: single values, of which mean, standard deviation and quantiles are logged. `routing`:
    of mixtures, over passes. All are plain numbers and CPU tensors; `refine.training.exchange` adds up those of all
    processes.
    """

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.values: dict[str, list[Tensor]] = {}
        self.log_prob_gap = 0.0
        self.routing: RouterCounts | None = None

    def add_routing(self, counts: RouterCounts) -> None:
        """Add what the routers of all layers did in a pass."""
        self.routing = counts if self.routing is None else self.routing + counts

    def add(self, result: Any, batch: dict[str, Any]) -> None:
        """Add the result of `batch`: an AnswerResult for kind "answers", else a StepResult."""
        if batch["kind"] == "answers":
            self._add_answers(result, batch)
        else:
            self._add_step(result, batch)

    def _add_step(self, result: StepResult, batch: dict[str, Any]) -> None:
        """The losses carry the step's denominators, so they add up over its passes. Accuracy and entropy are means
        over the pass; they are weighted by its tokens."""
        own = counts_of(batch, None)
        real = _real(batch["lengths"], *batch["tokens"].shape)
        self._sum("tokens", own.tokens)
        self._sum("read", own.tokens)
        self._sum("ntp_tokens", own.ntp_tokens)
        self._sum("ntp_loss", float(result.ntp_loss))
        self._sum("correct", float(result.ntp_accuracy) * own.ntp_tokens)
        self._sum("entropy", float((result.entropy.detach().float().cpu() * real).sum()))
        if batch["marks"]:
            for cross_entropy in at_marks(result.cross_entropy.detach().float().cpu(), batch):
                self._sum("marked_loss", float(cross_entropy.sum()))
                self._sum("marked_tokens", cross_entropy.numel())
        if result.focus_tokens:
            self._sum("focus_loss", float(result.focus_loss))
        if not result.rollout_tokens:
            return
        self._sum("nsp_loss", float(result.nsp_loss))
        valid = result.valid.detach().cpu()  # [B, c]
        for kind, rewards in result.rewards.items():  # [B, c, n]
            self._keep(f"reward/{kind}", rewards, valid)
        self._keep("advantages", result.advantages, valid)
        self._keep("ratio", result.ratio, valid)
        self._sum("rollouts", result.rollouts[result.valid].shape[:2].numel())
        self._sum("rollout_tokens", result.rollout_tokens)
        self._sum("clipped", float(result.clip_fraction) * result.rollout_tokens)
        self.log_prob_gap = max(self.log_prob_gap, float(result.log_prob_gap))

    def _add_answers(self, result: Any, batch: dict[str, Any]) -> None:
        self._sum("tokens", counts_of(batch, None).tokens)
        self._sum("answer_tokens", result.answer_tokens)
        self._sum("answer_loss", float(result.loss.detach()))
        self._sum("answer_correct", float(result.accuracy) * result.answer_tokens)

    def _sum(self, name: str, value: float) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value

    def _keep(self, name: str, values: Tensor, valid: Tensor) -> None:
        self.values.setdefault(name, []).append(values.detach().float().cpu()[valid].flatten())

    @staticmethod
    def merged(parts: Sequence[StepStatistics]) -> StepStatistics:
        """The statistics of all processes as one."""
        merged = StepStatistics()
        for part in parts:
            for name, value in part.sums.items():
                merged._sum(name, value)
            for name, values in part.values.items():
                merged.values.setdefault(name, []).extend(values)
            merged.log_prob_gap = max(merged.log_prob_gap, part.log_prob_gap)
            if part.routing is not None:
                merged.add_routing(part.routing)
        return merged

    def metrics(self, steps: int = 1, quantiles_of: str = "") -> dict[str, float]:
        """The metrics of `steps` optimizer steps. Losses are means over the steps, the others over tokens or rollouts.
        Each reward has a mean and a standard deviation; `quantiles_of`, the optimised one, also has quantiles."""
        sums, found = self.sums, {}
        if "ntp_loss" in sums:
            found["ntp_loss"] = sums["ntp_loss"] / steps
            found["ntp_accuracy"] = sums["correct"] / max(sums["ntp_tokens"], 1)
            found["entropy"] = sums["entropy"] / sums["read"]
        if "answer_loss" in sums:
            found["answer_loss"] = sums["answer_loss"] / steps
            found["answer_accuracy"] = sums["answer_correct"] / max(sums["answer_tokens"], 1)
        if "marked_tokens" in sums:
            found["marked_loss"] = sums["marked_loss"] / sums["marked_tokens"]
        if "focus_loss" in sums:
            found["focus_loss"] = sums["focus_loss"] / steps
        if "rollouts" in sums:
            found["nsp_loss"] = sums["nsp_loss"] / steps
            found["rollouts"] = sums["rollouts"] / steps
            found["clip_fraction"] = sums["clipped"] / sums["rollout_tokens"]
            found["log_prob_gap"] = self.log_prob_gap
            found["advantage/std"] = _standard_deviation(torch.cat(self.values["advantages"]))
            found["ratio/mean"] = float(torch.cat(self.values["ratio"]).mean())
            for name in sorted(self.values):
                if name.startswith("reward/"):
                    quantiles = QUANTILES if name == f"reward/{quantiles_of}" else ()
                    values = _distribution(self.values[name], quantiles)
                    found.update({f"{name}/{key}": value for key, value in values.items()})
        if self.routing is not None:
            found.update(_of_routers(self.routing))
        return found

    def histograms(self) -> dict[str, list[int]]:
        """The rewards of each kind, counted in the bins of `refine.training.reward_histograms`. A reward from outside
        has no known range, and so no histogram: it has quantiles."""
        return {
            f"{name}{reward_histograms.SUFFIX}": reward_histograms.counts(
                torch.cat(values), name.removeprefix("reward/")
            )
            for name, values in sorted(self.values.items())
            if name.startswith("reward/") and name.removeprefix("reward/") in reward_histograms.RANGES
        }


def _of_routers(counts: RouterCounts) -> dict[str, float]:
    """The busiest expert's tokens over the mean expert's (1: all have as many), the layers' mean and the worst layer;
    entropy of the routers' probabilities [nats], mean over layers and tokens."""
    load = counts.load.double()  # [L, E]
    imbalance = load.amax(1) / load.mean(1)
    entropy = float(counts.entropy.double().mean()) / counts.tokens
    return {
        "router/load/mean": float(imbalance.mean()),
        "router/load/max": float(imbalance.max()),
        "router/entropy": entropy,
    }


def _distribution(values: list[Tensor], quantiles: Sequence[float]) -> dict[str, float]:
    together = torch.cat(values)
    at = torch.quantile(together, torch.tensor(quantiles)).tolist() if quantiles else []
    return {
        "mean": float(together.mean()),
        "std": _standard_deviation(together),
        **{quantile(q): value for q, value in zip(quantiles, at, strict=True)},
    }


def _standard_deviation(values: Tensor) -> float:
    """With the denominator n - 1; 0 for a single value."""
    return float(values.std()) if values.numel() > 1 else 0.0


def _real(lengths: Sequence[Sequence[int]] | None, rows: int, width: int) -> Tensor:
    """[B, T] bool: which places hold tokens, not padding."""
    held = torch.tensor([width] * rows if lengths is None else [sum(row) for row in lengths])
    return torch.arange(width) < held[:, None]
