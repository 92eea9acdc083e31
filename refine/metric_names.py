"""The public names of metrics, in one place: `train/…` while training, `val/…` on held-out text (`val/prompts/…` on the
text of held-out prompts),
`eval/<task>/<length>/…` on prompts. People search, plot and promote by these names."""

from __future__ import annotations

import re
from collections.abc import Mapping

PROMPTS = "prompts"  # `val/prompts/…`: of the prompts' tokens, in post-training, where `val/…` is of documents
HEADLINES = ("/loss", "/marked_loss", "/score")  # ends of the metrics that tables and pages show, which are few
LESS_IS_BETTER, MORE_IS_BETTER = ("loss", "adapt_seconds"), ("score", "accuracy", "log_prob")  # ends of names
TIMES = ("seconds", "tokens_per_second")  # ends of metrics that differ each time
METRICS_FILE = "metrics.jsonl"  # in a training's folder: every row of metrics that it logged
HISTOGRAM_TABLE, HISTOGRAM_PICTURE = "reward_histograms.csv", "reward_histograms.png"  # there, too: of the rewards
TRAINING = ("train/", "validation/")  # what a training run saw of itself is in MLflow's charts, not in tables

# What each metric is a mean over: the end of its name, and the end of the name that counts its samples.
COUNTED_BY = {
    "loss": "sequences",
    "marked_loss": "marked_sequences",
    "accuracy": "sequences",
    "score": "samples",
    "log_prob": "samples",
    "adapt_seconds": "samples",
}
COUNTS = ("/samples", "/sequences", "/marked_sequences")  # ends of the names that count

OF_DOCUMENTS = ("loss", "loss_low", "loss_high", "accuracy", "accuracy_low", "accuracy_high", "tokens", "sequences")
OF_MARKS = ("marked_loss", "marked_loss_low", "marked_loss_high", "marked_sequences")  # of documents with marks
MARKED_TOKENS = 8  # after a mark; their mean cross-entropy is marked_loss: a needle's value, whatever k an arm has
OF_PROMPTS = ("score", "score_low", "score_high", "samples", "log_prob", "log_prob_low", "log_prob_high", "cut")

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the reward that is optimised


def smaller_is_better(metric: str) -> bool:
    """Whether less of a metric is better."""
    return metric.endswith(LESS_IS_BETTER)


def quantile(share: float) -> str:
    """`q05` for 0.05."""
    return f"q{round(100 * share):02d}"


def validation_name(data: str, measured: str, of_prompts: bool) -> str:
    """The name of what validation measured on the held-out set `data`: `val/loss` of documents, `val/prompts/loss` of
    the tokens of prompts, `val/answer_loss` of their answers."""
    apart = of_prompts and not measured.startswith("answer_")
    return f"{data}/{PROMPTS}/{measured}" if apart else f"{data}/{measured}"


def told_apart(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a post-trained version that an earlier release recorded: there, rewards and entropy on prompts had
    the names of those on documents."""
    old = re.compile(r"val/(reward/.+|entropy|rollouts)")
    return {
        f"val/{PROMPTS}/{found[1]}" if (found := old.fullmatch(name)) else name: value
        for name, value in metrics.items()
    }


def count_of(metrics: Mapping[str, float], metric: str) -> int:
    """The number of samples that `metric` is a mean over, as `metrics` has it; 0 if they do not."""
    if "/reward/" in metric:
        return int(metrics.get(f"{metric.partition('/reward/')[0]}/rollouts", 0))
    prefix, _, which = metric.rpartition("/")
    return int(metrics.get(f"{prefix}/{COUNTED_BY[which]}", 0)) if which in COUNTED_BY else 0
