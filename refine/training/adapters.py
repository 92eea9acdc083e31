"""Adapters of peft (LoRA and its kin): a few small matrices are trained beside weights that stay as they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from refine.errors import SettingError, reason
from refine.models.mixture import Experts, Router

ADAPTER = "adapter_model.safetensors"  # in a checkpoint of a model with adapters
HEADS = ("lm_head", "embeddings", "embed_tokens")  # the objective reads their weights without calling them


def with_adapters(model: Any, config: Any, seed: int) -> Any:
    """`model` as a peft model with new adapters of `config` (LoraConfig, ...), whose random start depends on `seed`.

    Only the adapters have gradients. `merge_and_unload()` of the result gives a model of `refine.models` again.
    Raises SettingError: peft is not installed, `config` is not its, names no layer, or asks for what has no effect or
    another result in each pass: adapters of the head, the embeddings or a layer that is not linear (nor a router or
    experts, whose matrices peft adapts), prompt learning, dropout.
    """
    try:
        import peft
    except ImportError:
        raise SettingError("peft_config needs the package peft: pip install 'refine-fast-weights[lora]'") from None
    if not isinstance(config, peft.PeftConfig):
        raise SettingError(f"peft_config is a {type(config).__name__}: expected one of peft, such as peft.LoraConfig")
    if isinstance(model, peft.PeftModel):
        raise SettingError("the model has adapters already: leave out peft_config to train those")
    if getattr(config, "is_prompt_learning", False):
        raise SettingError(f"peft_config is a {type(config).__name__}: a read has no prompt to learn; use LoraConfig")
    if dropout := getattr(config, "lora_dropout", 0.0):
        raise SettingError(
            f"peft_config.lora_dropout is {dropout}: expected 0, because the same model samples a rollout and scores it"
        )
    if kept := getattr(config, "modules_to_save", None):
        raise SettingError(f"peft_config.modules_to_save names {', '.join(kept)}: only adapters can be trained")
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            adapted = peft.get_peft_model(model, config)
        except ValueError as error:
            raise SettingError(
                f"peft_config: {reason(error)}; name layers in target_modules, or 'all-linear'"
            ) from None
    _refuse_without_effect(adapted)
    return adapted


def _refuse_without_effect(adapted: Any) -> None:
    """Raises SettingError: an adapter sits where the model does not call the layer."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in adapted.named_modules():
        if isinstance(layer, BaseTunerLayer) and (
            name.rpartition(".")[2] in HEADS or not isinstance(layer.get_base_layer(), (nn.Linear, Router, Experts))
        ):
            raise SettingError(
                f"peft_config.target_modules includes {name.removeprefix('base_model.model.')}, where an adapter has "
                "no effect: name linear layers of the blocks, such as q_proj, v_proj, o_proj, down_proj"
            )


def has_adapters(model: Any) -> bool:
    """Whether `model` is a peft model."""
    return hasattr(model, "peft_config")
