"""Stage `start`: next-token training of a new model on the training text, so that mid-training has a model to start
from whose next-token loss has begun to flatten (FACTS: REFINE on a model that still learns fast costs loss)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refine.errors import SettingError
from refine.phases import run_folder as folder
from refine.phases.prepared_data import Prepared, model_identity
from refine.settings import CommonSettings
from refine.settings.objective import ObjectiveSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerCallback


def identity(settings: CommonSettings, data: Prepared, model: Path | None = None) -> dict[str, Any]:
    """What the starting model is made from (JSON values): a new model, or the one in folder `model`.

    Raises SettingError: no config for a new model.
    """
    if not settings.model.config:
        raise SettingError("model.config is empty: give the new model's config.json fields, or train from a checkpoint "
                           "with `refine train mid`")  # fmt: skip
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


def start_training(
    settings: CommonSettings,
    data: Prepared,
    output: Path,
    callbacks: Sequence[TrainerCallback] = (),
    once_checked: Callable[[], None] | None = None,
    model: Path | None = None,
) -> dict[str, Any]:
    """Train a new model of `settings.model.config`, or go on with that of folder `model`, into `output` (see
    `refine.phases.run.run`).

    `once_checked` is called when settings, data and output fit, before anything heavy is imported.
    """
    data.check("train", "validation")
    record = identity(settings, data, model)
    folder.check(output, record)
    if once_checked is not None:
        once_checked()
    from refine.phases.run import run
    from refine.training.arguments import arguments_of

    arguments = arguments_of(
        settings.training.start,
        ObjectiveSettings(nsp_weight=0.0),
        str(output),
        settings.seed,
        sharding=settings.training.sharding,
        validation_rollouts=False,
    )
    inputs, patience = (
        data_inputs(data, lambda: _new_model(record) if model is None else _loaded(model)),
        settings.training.start.early_stop_after,
    )
    return run("start", inputs, arguments, record, output, callbacks, patience)


def _new_model(record: dict[str, Any]) -> PreTrainedModel:
    import torch

    from refine.models import from_config
    from refine.models.shifted_keys import shift_keys
    from refine.training.order import derived_seed

    torch.manual_seed(derived_seed("model", record["seed"]))
    model = from_config(record["model"])
    if record.get("shifted_keys"):
        shift_keys(model)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(record.get("embedding_scale", 1.0))
    return model


def _loaded(folder: Path) -> PreTrainedModel:
    import torch

    from refine.models import from_pretrained

    return from_pretrained(folder, dtype=torch.float32)


def data_inputs(data: Prepared, model: Any) -> Any:
    """Sequences and tokenizer of `data`, and how to build the model, for `phase.run`."""
    from transformers import AutoTokenizer

    from refine.data.token_sequences import load_token_sequences
    from refine.phases.run import Inputs

    return Inputs(
        model=model,
        train=load_token_sequences(data.documents("train")),
        validation=load_token_sequences(data.documents("validation")),
        tokenizer=AutoTokenizer.from_pretrained(data.tokenizer),
    )
