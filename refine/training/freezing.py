"""Weights that a training leaves as they are (setting `freeze`).

`attention`: the token mixers of a hybrid's attention layers, full or over a window: projections, norms of q and k, and
adapters (LoRA) in them. All else trains: linear mixers, MLPs, norms, embeddings, head. Gradients still pass through.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from refine.errors import SettingError
from refine.models import from_config
from refine.models.attention.latent import LatentAttention
from refine.models.attention.mixer import Attention
from refine.models.token_mixer import TokenMixer
from refine.settings.training import Freeze

ATTENTION = (Attention, LatentAttention)


def check_freeze(model: Any, what: Freeze, setting: str) -> None:
    """Raises SettingError, which names `setting`: `model` has no layers of attention, or no others."""
    if what == "none":
        return
    mixers = [module for module in model.modules() if isinstance(module, TokenMixer)]
    attending = [mixer for mixer in mixers if isinstance(mixer, ATTENTION)]
    if not attending:
        raise SettingError(
            f"{setting} is 'attention', and this {model.config.model_type} has no layers of attention: "
            "expected 'none', or a hybrid"
        )
    if len(attending) == len(mixers):
        raise SettingError(
            f"{setting} is 'attention', and all {len(mixers)} layers of this {model.config.model_type} attend, so that "
            "no layer with fast weights would learn: expected 'none'"
        )


def check_config(config: dict[str, Any] | Path, what: Freeze, setting: str) -> None:
    """As `check_freeze`, for the model that config.json's fields (or the folder with that file) describe.

    Raises ModelError too: a config that is not implemented."""
    if what == "none":
        return
    with torch.device("meta"):
        model = from_config(config)
    check_freeze(model, what, setting)


def freeze(model: Any, what: Freeze, setting: str) -> list[nn.Parameter]:
    """Turn the gradients of `what` off; returns the parameters that had one.

    `model`: of refine.models, or a peft model of one, before any wrapper. Raises SettingError, which names `setting`:
    as `check_freeze`, or nothing is left to train (adapters of attention alone).
    """
    check_freeze(model, what, setting)
    if what == "none":
        return []
    inside = {
        parameter: None
        for module in model.modules()
        if isinstance(module, ATTENTION)
        for parameter in module.parameters()
    }
    stopped = [parameter for parameter in inside if parameter.requires_grad]
    if not any(parameter.requires_grad and parameter not in inside for parameter in model.parameters()):
        raise SettingError(
            f"{setting} is 'attention', and nothing else would train: let the adapters' target_modules name layers "
            "outside of attention, such as the MLP's down_proj, or use 'none'"
        )
    for parameter in stopped:
        parameter.requires_grad_(False)
    return stopped


@contextlib.contextmanager
def frozen(model: Any, what: Freeze, setting: str) -> Iterator[None]:
    """A context in which `what` has no gradients. Raises as `freeze`."""
    stopped = freeze(model, what, setting)
    try:
        yield
    finally:
        for parameter in stopped:
            parameter.requires_grad_(True)
