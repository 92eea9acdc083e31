"""params.yaml as validated, documented settings. The only reader of that file.

A section per file; each forbids what it does not know. `load` raises SettingError with one line that names
the setting at fault and the nearest known name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from refine.errors import SettingError, nearest
from refine.settings.base import Section, validated
from refine.settings.data import DataSettings, DocumentsSettings, Source, TokenizerSettings
from refine.settings.evaluation import EvaluationSettings, RegistrySettings
from refine.settings.model import ModelSettings
from refine.settings.objective import ObjectiveSettings
from refine.settings.prompts import NeedlesSettings, QuestionsSettings
from refine.settings.training import StartSettings, StartTraining, TrainingSettings

__all__ = ["Drill", "ObjectiveSettings", "Recipe", "Section", "Settings", "Start", "load", "load_recipe", "validated"]


class Drill(Section):
    """What a pretraining begins with: text that is nearly all recall, until the model recalls."""

    train: tuple[Source, ...] = Field(min_length=1, description="text of the drill")
    start: StartSettings = Field(description="its training, as training.start")


class Start(Section):
    """What a model is trained from and how."""

    seed: int = Field(ge=0, description="seed of the whole run; every draw derives from it")
    data: DataSettings
    tokenizer: TokenizerSettings
    documents: DocumentsSettings
    model: ModelSettings
    training: StartTraining


class Recipe(Start):
    """A pretraining (`refine pretrain`)."""

    drill: Drill | None = Field(None, description="a first training on text that is nearly all recall; null: none")


class Settings(Start):
    """Everything in params.yaml."""

    needles: NeedlesSettings
    questions: QuestionsSettings
    training: TrainingSettings
    evaluation: EvaluationSettings
    registry: RegistrySettings

    @model_validator(mode="after")
    def _room_for_rollouts(self) -> Settings:
        training, prepared = self.training, self.documents.sequence_length
        lengths = {
            "mid": min(training.mid.length or prepared, prepared),
            "post": training.post and training.post.length,
        }
        for phase, length in lengths.items():
            if length is None:
                continue
            one = getattr(training, phase).objective
            if one.nsp_weight > 0 and one.min_prefix + one.rollout_length > length:
                raise ValueError(
                    f"training.{phase}.objective: min_prefix {one.min_prefix} and rollout_length {one.rollout_length} "
                    f"leave no place for a rollout in {length} tokens: lower them, or set nsp_weight 0"
                )
        return self


def load(path: str | Path = "params.yaml", overrides: tuple[str, ...] = ()) -> Settings:
    """Settings from `path`, with ``section.key=value`` overrides (values are YAML) laid over them.

    Raises SettingError: file missing or no YAML, unknown name, value out of range, contradiction.
    """
    return validated(Settings, _values(Path(path), overrides), str(path))


def load_recipe(path: str | Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """The settings of a pretraining, as `load` gives those of an experiment; raises as that does."""
    return validated(Recipe, _values(Path(path), overrides), str(path))


def _values(path: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingError(
            f"{path}: no such settings file; run from the project's folder, or name it with --params"
        ) from None
    except yaml.YAMLError as error:
        raise SettingError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise SettingError(f"{path}: expected sections with settings, found {type(values).__name__}")
    for override in overrides:
        _override(values, override)
    return values


def _override(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise SettingError(f"override {override!r}: expected section.key=value")
    *sections, key = name.split(".")
    here = values
    for section in sections:
        if not isinstance(here.get(section), dict):
            raise SettingError(f"override {override!r}: no section {section!r}{nearest(section, map(str, here))}")
        here = here[section]
    try:
        here[key] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise SettingError(f"override {override!r}: {text!r} is not a YAML value") from None
