"""Settings of evaluation and of the registry that compares what came out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from refine.settings.base import Section


class EvaluationSettings(Section):
    """How models are scored."""

    batch_size: int = Field(8, ge=1, description="sequences or prompts per forward pass; changes no score")


class RegistrySettings(Section):
    """Which registered version becomes champion."""

    model_name: str = Field("refine-sample", min_length=1, description="name of the registered model")
    metric: str = Field("val/loss", description="metric that picks the champion")
    goal: Literal["minimise", "maximise"] = Field(
        "minimise", description="whether less or more of the metric is better"
    )
