"""Settings of the evaluation and of the model registry."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from refine.errors import reason
from refine.metric_names import LESS_IS_BETTER, MORE_IS_BETTER
from refine.settings.base import MOST_ROWS, Section
from refine.system import names


class EvaluationSettings(Section):
    """Scoring of models."""

    batch_size: int = Field(
        8, ge=1, le=MOST_ROWS, description="sequences or prompts per forward pass; does not change scores"
    )


class RegistrySettings(Section):
    """The rule by which a registered version becomes champion."""

    model_name: str = Field("refine-sample", description="name of the registered model, and of the experiment; no path")
    metric: str = Field("val/loss", description="metric that picks the champion")
    goal: Literal["minimise", "maximise"] = Field(
        "minimise", description="whether a smaller or a larger metric is better"
    )
    minimum_gain: float = Field(0.0, ge=0, description="`refine promote` requires at least this gain in the metric")
    guards: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="metrics and the largest loss in each that `refine promote` accepts"
    )

    @field_validator("model_name")
    @classmethod
    def _no_path(cls, name: str) -> str:
        if wrong := names.fault(name):
            raise ValueError(f"{reason(repr(name), 60)} {wrong}; {names.expected()}")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> RegistrySettings:
        for ends, goal in ((LESS_IS_BETTER, "minimise"), (MORE_IS_BETTER, "maximise")):
            if self.metric.endswith(ends) and self.goal != goal:
                raise ValueError(f"goal {self.goal!r} would make the worst {self.metric!r} champion: use {goal!r}")
        return self
