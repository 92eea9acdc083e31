"""Mid-training on long documents (METHOD, phases): arms `none`, `sft` and `refine` with the same data, tokens, steps
and seed. `sft` is `refine` without its next-sequence loss; `none` is the starting model, validated and recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refine.phases import run_folder as folder
from refine.phases.prepared_data import Prepared, check_model, check_vocabulary, model_identity
from refine.phases.start import data_inputs
from refine.settings import Settings
from refine.settings.objective import ObjectiveSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerCallback

ARMS = ("none", "sft", "refine")


def objective_of(arm: str, settings: ObjectiveSettings) -> ObjectiveSettings:
    """The objective of an arm: the same in all, but for the weight of the next-sequence loss."""
    return settings if arm == "refine" else settings.model_copy(update={"nsp_weight": 0.0})


def identity(settings: Settings, arm: str, model: str, revision: str | None, data: Prepared) -> dict[str, Any]:
    """What the arm's model is made from (JSON values)."""
    mid = settings.training.mid
    values = mid.model_dump(mode="json", exclude={"arms", "objective"})
    return {
        "phase": "mid",
        "arm": arm,
        "seed": settings.seed,
        "settings": {**values, "objective": objective_of(arm, mid.objective).model_dump(mode="json")},
        "start": model_identity(model, revision),
        "data": data.identity(),
    }


def mid_training(
    settings: Settings,
    arm: str,
    model: str,
    data: Prepared,
    output: Path,
    revision: str | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    once_checked: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Train `model` (a folder or hub name) in one arm into `output` (see `refine.phases.run.run`).

    `once_checked` is called when settings, data, model and output fit, before anything heavy is imported.
    Raises ModelError: no such model, of another architecture, or of another vocabulary than the data.
    """
    data.check("train", "validation")
    check_model(model, data)
    record = identity(settings, arm, model, revision, data)
    folder.check(output, record)
    if once_checked is not None:
        once_checked()
    from refine.phases.run import run
    from refine.training.arguments import arguments_of

    mid = settings.training.mid
    arguments = arguments_of(
        mid,
        objective_of(arm, mid.objective),
        str(output),
        settings.seed,
        settings.training.sharding,
        max_length=mid.length,
        packing=mid.packing,
    )
    if arm == "none":
        arguments.max_steps = 0
    inputs = data_inputs(data, lambda: starting_model(model, revision, data))
    return run(f"mid {arm}", inputs, arguments, record, output, callbacks, mid.early_stop_after)


def starting_model(name: str, revision: str | None, data: Prepared) -> PreTrainedModel:
    """The model to train, with float32 weights: a step at a learning rate of 1e-6 is lost in bf16's rounding."""
    import torch

    from refine.models import from_pretrained

    model = from_pretrained(name, revision=revision, dtype=torch.float32)
    check_vocabulary(name, model.config.vocab_size, data)
    return model
