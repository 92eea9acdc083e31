"""Settings of evaluation and of the registry that compares what came out."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from refine.metric_names import LESS_IS_BETTER, MORE_IS_BETTER
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
    minimum_gain: float = Field(0.0, ge=0, description="`refine promote` asks for at least this gain in the metric")
    guards: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="`refine promote` allows each of these metrics to get worse by at most this"
    )

    @model_validator(mode="after")
    def _consistent(self) -> RegistrySettings:
        for ends, goal in ((LESS_IS_BETTER, "minimise"), (MORE_IS_BETTER, "maximise")):
            if self.metric.endswith(ends) and self.goal != goal:
                raise ValueError(f"goal {self.goal!r} would make the worst {self.metric!r} champion: use {goal!r}")
        return self
