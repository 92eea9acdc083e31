"""Checks before an experiment starts anything."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from refine import paths
from refine.errors import DataError, SettingError, nearest
from refine.metric_names import HEADLINES, OF_DOCUMENTS, OF_PROMPTS, QUANTILES, quantile, validation_name
from refine.phases.prepared_data import Prepared, check_model
from refine.settings import ObjectiveSettings, Settings
from refine.settings.training import MidSettings, PostSettings, TrainingSettings

REWARDS: tuple[str, ...] = get_args(ObjectiveSettings.model_fields["reward"].annotation)


def check(settings: Settings) -> None:
    """Check MLflow's server, the folders, the data, the starting model and the registry's metrics.

    Raises RefineError: the first fault, in one line.
    """
    from refine.tracking.connection import check_answers, tracking_uri, writable

    check_answers(tracking_uri())
    writable(paths.home())
    writable(paths.results().resolve())
    data = Prepared(paths.prepared())
    data.check("train", "validation")
    if settings.training.post is not None and not data.questions("train"):
        raise DataError(
            f"{data.folder / 'questions'} holds no prompts to train on: make them with `dvc repro questions`, or set "
            "training.post to null"
        )
    if settings.model.checkpoint is not None:
        check_model(settings.model.checkpoint, data)
    check_metrics(settings, data)


def check_metrics(settings: Settings, data: Prepared) -> None:
    """Raises SettingError: `registry` names a metric that no version of this experiment will have."""
    known = evaluated(data.folder) | validated(settings.training, bool(data.questions("validation")))
    rule = settings.registry
    for setting, name in (("metric", rule.metric), *((f"guards.{name}", name) for name in rule.guards)):
        if name not in known:
            headlines = [one for one in known if one.endswith(HEADLINES)]
            headlines.sort(key=lambda one: (one.startswith("eval/"), one))
            raise SettingError(
                f"registry.{setting}: no version will have a metric {name!r}{nearest(name, known)}; with this data and "
                f"these settings there will be {', '.join(headlines)}"
            )


def validated(training: TrainingSettings, answers: bool) -> set[str]:
    """Names of the metrics that mid- and post-training log in validation, such as `val/reward/cosine/mean` (of
    documents) and `val/prompts/reward/cosine/mean`.

    answers: whether post-training has held-out prompts with answers.
    """
    found = _validated(training.mid, of_prompts=False)
    if training.post is not None and answers:
        found |= _validated(training.post, of_prompts=True) | {"val/answer_loss", "val/answer_accuracy"}
    return found


def _validated(phase: MidSettings | PostSettings, of_prompts: bool) -> set[str]:
    names = {"loss", "accuracy", "entropy", "rollouts"}
    names |= {f"reward/{kind}/{shape}" for kind in REWARDS for shape in ("mean", "std")}
    names |= {f"reward/{phase.objective.reward}/{quantile(share)}" for share in QUANTILES}
    return {validation_name("val", name, of_prompts) for name in names}


def evaluated(folder: str | Path) -> set[str]:
    """Names of the metrics that evaluation on all documents and prompts under `folder` gives.

    Raises DataError: a broken parquet file, or two files with the same prompts.
    """
    from refine.evaluation.inputs import document_sets, find_prompts

    names = {f"{name}/{which}" for name in document_sets(folder) for which in OF_DOCUMENTS}
    return names | {f"eval/{task}/{length}/{which}" for task, length in find_prompts(folder) for which in OF_PROMPTS}
