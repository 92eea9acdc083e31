"""Settings of the starting model: an existing checkpoint, or a new model that is trained on the training text."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from refine.settings.base import Section


class ModelSettings(Section):
    """Where the starting model comes from."""

    checkpoint: str | None = Field(
        None, description="a checkpoint folder or hub name; null trains a new model in stage `start`"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a hub checkpoint")
    config: dict[str, Any] | None = Field(
        None, description="config.json fields of the new model (vocab_size comes from the tokenizer)"
    )

    shifted_keys: bool = Field(
        False,
        description="a new model's keys begin as the tokens before and its queries as the last tokens: it learns to "
        "recall within a million tokens (LaCT: with qkv_bias and ttt_nope)",
    )

    embedding_scale: float = Field(
        1.0,
        gt=0,
        description="a new model's embeddings begin this many times as wide: pieces that are used alike, such as "
        "digits, stay far enough apart to be recalled",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> ModelSettings:
        if self.checkpoint is None and not self.config:
            raise ValueError(
                "model.checkpoint and model.config are both empty: name a checkpoint, or give the new model's config"
            )
        return self
