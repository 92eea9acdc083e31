"""Builds models from a config, a folder or a hub name; reads safetensors only, and refuses what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from refine.errors import ModelError, nearest, reason
from refine.models.configuration import FastWeightConfig
from refine.models.delta.comba import CombaForCausalLM
from refine.models.delta.delta_net import DeltaNetForCausalLM
from refine.models.delta.gated_delta_net import GatedDeltaNetForCausalLM
from refine.models.delta.gated_delta_product import GatedDeltaProductForCausalLM
from refine.models.delta.kda import KDAForCausalLM
from refine.models.hybrids.kimi_linear import KimiLinearForCausalLM
from refine.models.hybrids.olmo_hybrid import OlmoHybridForCausalLM
from refine.models.hybrids.qwen3_5 import Qwen3_5ForCausalLM
from refine.models.hybrids.qwen3_5_moe import Qwen3_5MoeForCausalLM
from refine.models.hybrids.qwen3_next import Qwen3NextForCausalLM
from refine.models.lact.model import LactForCausalLM
from refine.models.language_model import FastWeightLanguageModel
from refine.models.weights import resolve
from refine.system.readers import read_json

MODELS: dict[str, type[FastWeightLanguageModel]] = {}


def register(model: type[FastWeightLanguageModel]) -> None:
    """Make `model` known to `from_config`, `from_pretrained`, AutoConfig and AutoModelForCausalLM."""
    config = _config_class(model)
    MODELS[config.model_type] = model
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModelForCausalLM.register(config, model, exist_ok=True)
    _guard_names()


def _config_class(model: type[FastWeightLanguageModel]) -> type[FastWeightConfig]:
    return cast(type[FastWeightConfig], model.config_class)


def _guard_names() -> None:
    """Keep our classes registered: fla, when imported later, would replace them with its own of the same names."""
    theirs = CONFIG_MAPPING.register
    if getattr(theirs, "keeps_refine", False):
        return

    def guarded(key: str, value: Any, exist_ok: bool = False) -> None:
        if key in MODELS and value is not MODELS[key].config_class:
            return
        theirs(key, value, exist_ok=exist_ok)

    guarded.keeps_refine = True  # type: ignore[attr-defined]
    CONFIG_MAPPING.register = guarded  # type: ignore[method-assign]


def from_config(config: dict[str, Any] | str | Path | FastWeightConfig) -> FastWeightLanguageModel:
    """A new model with random weights, from config.json's fields or the path of such a file (or its folder).

    Raises ModelError: no such file, not JSON, or a model type or field that is unknown or not implemented.
    """
    if not isinstance(config, FastWeightConfig):
        values, where = (config, "config") if isinstance(config, dict) else (_read_config(Path(config)), str(config))
        config = config_of(values, where)
    return MODELS[config.model_type](config)


def _read_config(path: Path) -> dict[str, Any]:
    path = path / "config.json" if path.is_dir() else path
    return read_json(path, "the fields of a model's config", ModelError, "no such config file")


def config_of(values: dict[str, Any], where: str) -> FastWeightConfig:
    """The config of config.json's fields `values`. Raises ModelError that names the type or field not implemented."""
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in MODELS:
        given = f"{reason(repr(kind), 100)}{nearest(str(kind), MODELS)}"
        raise ModelError(f"{where}: model_type is {given}; expected one of {', '.join(MODELS)}")
    return _config_class(MODELS[kind]).of_file(values)


def from_pretrained(
    name: str | Path, revision: str | None = None, dtype: torch.dtype | str = "auto"
) -> FastWeightLanguageModel:
    """The model in a folder, in the package ("sample/delta_net", or `lact`, `hybrid`), or on the hub at `revision`.

    `dtype` "auto" keeps the dtype of the weights. Raises ModelError: no such model, the hub does not answer, a tensor
    that is missing, not expected, damaged, of another shape or not finite, or a config that is not implemented.
    """
    folder = resolve(name, revision)
    config = config_of(_read_config(folder), str(folder / "config.json"))
    return MODELS[config.model_type].from_pretrained(str(folder), dtype=dtype)


def load_for_reading(name: str | Path, device: str | None = None) -> FastWeightLanguageModel:
    """The model, for reading and answering on `device` (None: a GPU if there is one, else the CPU).

    On a CPU it computes in float32, also if its weights are bfloat16: most CPUs have no units for that and need several
    times as long.
    Raises ModelError, as `from_pretrained` does.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model: Any = from_pretrained(name, dtype=torch.float32 if place.type == "cpu" else "auto")
    return cast(FastWeightLanguageModel, model.to(place).eval())


register(DeltaNetForCausalLM)
register(GatedDeltaNetForCausalLM)
register(KDAForCausalLM)
register(GatedDeltaProductForCausalLM)
register(CombaForCausalLM)
register(LactForCausalLM)
# transformers has these types, and keeps them: they are found here alone
MODELS.update(dict.fromkeys(("qwen3_5_text", "qwen3_5"), Qwen3_5ForCausalLM))
MODELS.update(dict.fromkeys(("qwen3_5_moe_text", "qwen3_5_moe"), Qwen3_5MoeForCausalLM))
MODELS["qwen3_next"] = Qwen3NextForCausalLM
MODELS["olmo_hybrid"] = OlmoHybridForCausalLM
MODELS["kimi_linear"] = KimiLinearForCausalLM
