"""Checks before an experiment starts anything."""

from __future__ import annotations

from pathlib import Path

from refine import paths
from refine.errors import DataError, SettingError, nearest
from refine.metric_names import HEADLINES, OF_DOCUMENTS, OF_MARKS, OF_PROMPTS, QUANTILES, quantile, validation_name
from refine.phases.prepared_data import Prepared, check_model
from refine.settings import Settings
from refine.settings.objective import REWARDS, is_external_reward, reward_kind
from refine.settings.training import BEST, MidSettings, OptimizerSettings, PostSettings, TrainingSettings

WIDTH = 64  # hidden size of the states with which a reward is tried


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
    check_freeze(settings)
    check_metrics(settings, data)
    check_best_by(settings, data)
    check_rewards(settings.training, data)


def check_freeze(settings: Settings) -> None:
    """Raises SettingError: a phase freezes attention, and the model that it trains has none, or nothing else. A hub
    name passes; its model is checked after the download."""
    training, name = settings.training, settings.model.checkpoint
    phases: dict[str, OptimizerSettings | None] = {
        "mid": training.mid,
        "post": training.post,
        "test_time": training.test_time,
    }
    if name is None:
        phases["start"] = training.start
    asked = {phase: one.freeze for phase, one in phases.items() if one is not None and one.freeze != "none"}
    if not asked or (name is not None and not paths.model(name).is_dir()):
        return
    from refine.training.freezing import check_config

    for phase, what in asked.items():
        check_config(
            settings.model.config or {} if name is None else paths.model(name), what, f"training.{phase}.freeze"
        )


def check_best_by(settings: Settings, data: Prepared) -> None:
    """Raises SettingError: a phase goes on with its best arm, by a metric that its trainings will not have."""
    known = validated(settings.training, bool(data.questions("validation")))
    if data.documents("recall").is_file():
        known |= {"recall/loss", "recall/accuracy", "recall/marked_loss"}
    for phase in (settings.training.mid, settings.training.post):
        if phase is not None and phase.continue_with == BEST and phase.best_by not in known:
            raise SettingError(
                f"training.{phase.phase()}.best_by: no training will have a metric {phase.best_by!r}"
                f"{nearest(phase.best_by, known)}; recall/… needs sources in data.recall"
            )


def check_rewards(training: TrainingSettings, data: Prepared) -> None:
    """Load the rewards from outside that arms name, and call each once.

    Raises SettingError: one cannot be imported, or returns something else than finite numbers of the right shape.
    """
    phases = (training.mid, training.post, training.test_time)
    objectives = [phase.objective_of(arm) for phase in phases if phase is not None for arm in phase.arms]
    outside = {one.reward: one for one in objectives if is_external_reward(one.reward)}
    if not outside:
        return
    from refine.data.tokenizer import load_tokenizer
    from refine.objective.external_rewards import check_reward, external_reward

    tokenizer = load_tokenizer(data.tokenizer)
    for objective in outside.values():
        check_reward(external_reward(objective, tokenizer), objective, len(tokenizer), WIDTH)


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
    optimised = {reward_kind(phase.objective_of(arm).reward) for arm in phase.arms}
    names |= {f"reward/{kind}/{shape}" for kind in {*REWARDS, *optimised} for shape in ("mean", "std")}
    names |= {f"reward/{kind}/{quantile(share)}" for kind in optimised for share in QUANTILES}
    return {validation_name("val", name, of_prompts) for name in names}


def evaluated(folder: str | Path) -> set[str]:
    """Names of the metrics that evaluation on all documents and prompts under `folder` gives.

    Raises DataError: a broken parquet file, or two files with the same prompts.
    """
    from refine.evaluation.inputs import document_sets, find_prompts

    sets = document_sets(folder)
    names = {f"{name}/{which}" for name in sets for which in OF_DOCUMENTS}
    names |= {f"{name}/{which}" for name, file in sets.items() if _marked(file) for which in OF_MARKS}
    return names | {f"eval/{task}/{length}/{which}" for task, length in find_prompts(folder) for which in OF_PROMPTS}


def _marked(file: Path) -> bool:
    """Whether the documents in `file` have marks."""
    from refine.data.parquet_files import open_parquet

    with open_parquet(file, "run `dvc repro documents`") as opened:
        return "marks" in opened.schema_arrow.names
