"""Mid-training on long documents (docs/method.md, Phases). Its arms share data, tokens, steps and seed: `refine`;
`sft`, which is `refine` without the next-sequence loss; `focus`, whose next-token loss weighs the tokens after the
positions more instead; variants of the settings; `none`, which only validates and records the starting model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refine.phases.plan import Plan
from refine.phases.prepared_data import Prepared, check_model, check_vocabulary, model_identity
from refine.phases.start import training_data
from refine.settings import Settings
from refine.settings.arms import NOT_OF_AN_ARM
from refine.settings.objective import ObjectiveSettings, is_external_reward

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from refine.phases.run import TrainingData
    from refine.training.arguments import RefineArguments


def plan(settings: Settings, arm: str, model: str, data: Prepared, revision: str | None = None) -> Plan:
    """Mid-training of `model` (a folder or hub name) in one arm.

    Raises SettingError: no such arm. DataError: prepared data is missing. ModelError: the folder holds no model, or one
    of another vocabulary.
    """
    settings.training.mid.check_arm(arm)
    data.check("train", "validation")
    check_model(model, data)
    identity = _identity(settings, arm, model, revision, data)
    prepare = partial(_prepare, settings, arm, model, revision, data)
    return Plan(f"mid {arm}", identity, prepare, settings.training.mid.early_stop_after)


def reward_code(settings: ObjectiveSettings) -> dict[str, str]:
    """The hash of the code of a reward from outside; {} for a reward of this package.

    Raises SettingError: the reward cannot be loaded.
    """
    if not is_external_reward(settings.reward):
        return {}
    from refine.objective.external_rewards import code_of

    return code_of(settings)


def _identity(settings: Settings, arm: str, model: str, revision: str | None, data: Prepared) -> dict[str, Any]:
    mid = settings.training.mid
    values = mid.model_dump(mode="json", exclude=NOT_OF_AN_ARM)
    return {
        "phase": "mid",
        "arm": arm,
        "seed": settings.seed,
        "settings": {**values, "objective": mid.objective_of(arm).model_dump(mode="json")}
        | reward_code(mid.objective_of(arm)),
        "start": model_identity(model, revision),
        "data": data.identity(),
    }


def _prepare(
    settings: Settings, arm: str, model: str, revision: str | None, data: Prepared, output: Path
) -> tuple[RefineArguments, TrainingData]:
    from refine.training.arguments import arguments_of

    mid = settings.training.mid
    arguments = arguments_of(
        mid,
        mid.objective_of(arm),
        str(output),
        settings.seed,
        settings.training.sharding,
        max_length=mid.length,
        packing=mid.packing,
    )
    if arm == "none":
        arguments.max_steps = 0
    return arguments, training_data(data, partial(starting_model, model, revision, data))


def starting_model(name: str, revision: str | None, data: Prepared) -> PreTrainedModel:
    """The model to train, with float32 weights, because bf16 rounds away a step at a learning rate of 1e-6.

    Raises ModelError: there is no model of that name, or it has another architecture or vocabulary.
    """
    import torch

    from refine.models import from_pretrained

    model = from_pretrained(name, revision=revision, dtype=torch.float32)
    check_vocabulary(name, model.config.vocab_size, data)
    return model
