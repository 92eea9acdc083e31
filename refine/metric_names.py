"""The public names of metrics: what training, validation and evaluation log them as."""

from __future__ import annotations

from typing import get_args

from refine.settings.objective import ObjectiveSettings
from refine.settings.training import TrainingSettings

REWARDS: tuple[str, ...] = get_args(ObjectiveSettings.model_fields["reward"].annotation)


QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the reward that is optimised


def quantile(share: float) -> str:
    """`q05` for 0.05."""
    return f"q{round(100 * share):02d}"


def validated(training: TrainingSettings, answers: bool) -> set[str]:
    """Names of the metrics that the validations of mid- and post-training log, as `val/reward/cosine/mean`.

    answers: whether there are held-out prompts with answers for post-training.
    """
    phases = [phase for phase in (training.mid, training.post) if phase is not None]
    names = {"loss", "accuracy", "entropy", "rollouts"}
    names |= {f"reward/{kind}/{shape}" for kind in REWARDS for shape in ("mean", "std")}
    names |= {f"reward/{phase.objective.reward}/{quantile(share)}" for phase in phases for share in QUANTILES}
    if training.post is not None and answers:
        names |= {"answer_loss", "answer_accuracy"}
    return {f"val/{name}" for name in names}


HEADLINES = ("/loss", "/score")  # ends of the metrics that tables and pages show, which have to fit on a screen


COUNTS = ("/samples", "/sequences")  # ends of the metrics that say what a score is a mean over
