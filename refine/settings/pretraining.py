"""Settings of `refine pretrain`: a small model from a settings file alone."""

from __future__ import annotations

from pydantic import Field

from refine.settings.base import Section
from refine.settings.data import Source
from refine.settings.experiment import CommonSettings
from refine.settings.training import StartSettings


class Drill(Section):
    """The first part of a pretraining: text in which nearly every token is recall, until the model recalls."""

    train: tuple[Source, ...] = Field(min_length=1, description="training text of the drill")
    start: StartSettings = Field(description="training of the drill, with the keys of training.start")


class PretrainingSettings(CommonSettings):
    """A pretraining (`refine pretrain`)."""

    drill: Drill | None = Field(None, description="a first training on text that is nearly all recall; null skips it")
