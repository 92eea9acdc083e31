"""Settings of the starting model: an existing checkpoint, or a new model that phase `start` trains."""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field, field_validator, model_validator

from refine.settings.base import Section


class ModelSettings(Section):
    """The starting model."""

    checkpoint: str | None = Field(
        None, description="checkpoint folder or hub name; null trains a new model in phase `start`"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a hub checkpoint")
    config: dict[str, Any] | None = Field(
        None, description="config.json fields of the new model, without vocab_size, which comes from the tokenizer"
    )

    shifted_keys: bool = Field(
        False,
        description="a new model starts with keys from the previous tokens and queries from the latest; it then learns "
        "to recall within a million tokens (LaCT also needs qkv_bias and ttt_nope)",
    )

    embedding_scale: float = Field(
        1.0,
        gt=0,
        description="factor on a new model's initial embeddings; a larger one keeps pieces with similar use, such as "
        "digits, far enough apart to recall them",
    )

    @field_validator("config")
    @classmethod
    def _finite(cls, config: dict[str, Any] | None) -> dict[str, Any] | None:
        for name, value in (config or {}).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} is {value}: expected a finite number")
        return config

    @model_validator(mode="after")
    def _one_origin(self) -> ModelSettings:
        if self.checkpoint is None and not self.config:
            raise ValueError(
                "model.checkpoint and model.config are both empty: name a checkpoint, or give the new model's config"
            )
        return self
