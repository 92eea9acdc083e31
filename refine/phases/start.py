"""Phase `start`: next-token training of a new model, until its loss begins to flatten. Mid-training starts from it:
REFINE costs a model loss while that model still learns fast (docs/method.md, Phases)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refine.errors import SettingError
from refine.phases.plan import Plan
from refine.phases.prepared_data import Prepared, model_identity
from refine.settings import CommonSettings
from refine.settings.objective import ObjectiveSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from refine.phases.run import TrainingData
    from refine.training.arguments import RefineArguments


def plan(settings: CommonSettings, data: Prepared, model: Path | None = None) -> Plan:
    """Next-token training of a new model with `settings.model.config`, or of the model in folder `model`.

    Raises DataError: prepared data is missing. SettingError: no config for a new model.
    """
    data.check("train", "validation")
    identity = _identity(settings, data, model)
    prepare = partial(_prepare, settings, data, model, identity)
    return Plan("start", identity, prepare, settings.training.start.early_stop_after)


def _identity(settings: CommonSettings, data: Prepared, model: Path | None) -> dict[str, Any]:
    if not settings.model.config:
        raise SettingError(
            "model.config is empty: give the new model's config.json fields, or train from a checkpoint with "
            "`refine train mid`"
        )
    return {
        "phase": "start",
        "arm": "sft",
        "seed": settings.seed,
        "settings": settings.training.start.model_dump(mode="json"),
        "model": {**settings.model.config, "vocab_size": data.vocabulary()},
        **settings.model.model_dump(include={"shifted_keys", "embedding_scale"}, exclude_defaults=True),
        **({} if model is None else {"start": model_identity(str(model), None)}),
        "data": data.identity(),
    }


def _prepare(
    settings: CommonSettings, data: Prepared, model: Path | None, identity: dict[str, Any], output: Path
) -> tuple[RefineArguments, TrainingData]:
    from refine.training.arguments import arguments_of

    arguments = arguments_of(
        settings.training.start,
        ObjectiveSettings(nsp_weight=0.0),
        str(output),
        settings.seed,
        sharding=settings.training.sharding,
        validation_rollouts=False,
    )
    return arguments, training_data(data, partial(_new_model, identity) if model is None else partial(_loaded, model))


def _new_model(identity: dict[str, Any]) -> PreTrainedModel:
    import torch

    from refine.models import from_config
    from refine.models.shifted_keys import shift_keys
    from refine.training.order import derived_seed

    torch.manual_seed(derived_seed("model", identity["seed"]))
    model = from_config(identity["model"])
    if identity.get("shifted_keys"):
        shift_keys(model)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(identity.get("embedding_scale", 1.0))
    return model


def _loaded(folder: Path) -> PreTrainedModel:
    import torch

    from refine.models import from_pretrained

    return from_pretrained(folder, dtype=torch.float32)


def training_data(data: Prepared, model: Callable[[], PreTrainedModel]) -> TrainingData:
    """The token sequences and the tokenizer of `data`, with `model`, which builds the starting model."""
    from refine.data.token_sequences import load_token_sequences
    from refine.data.tokenizer import load_tokenizer
    from refine.phases.run import TrainingData

    validation = load_token_sequences(data.documents("validation"))
    if data.documents("recall").is_file():
        validation = {"val": validation, "recall": load_token_sequences(data.documents("recall"))}
    return TrainingData(
        model=model,
        train=load_token_sequences(data.documents("train")),
        validation=validation,
        tokenizer=load_tokenizer(data.tokenizer),
    )
