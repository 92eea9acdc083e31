"""Reads a settings file, applies overrides, and validates the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from refine.errors import SettingError, nearest
from refine.settings.base import validated
from refine.settings.experiment import PretrainingSettings, Settings
from refine.system.unique_yaml import DuplicateKeyError, load_yaml


def load(path: str | Path = "params.yaml", overrides: Sequence[str] = ()) -> Settings:
    """The settings of an experiment in file `path`; each override ``section.key=value`` (value in YAML) replaces one.

    Raises SettingError: the file is missing or not YAML, a name is unknown, a value is out of range, or two settings
    contradict each other.
    """
    return validated(Settings, _values(Path(path), overrides), str(path))


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> PretrainingSettings:
    """The settings of a pretraining; otherwise as `load`."""
    return validated(PretrainingSettings, _values(Path(path), overrides), str(path))


def _values(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    try:
        values = load_yaml(path.read_text(encoding="utf-8"))
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
        here[key] = load_yaml(text)
    except DuplicateKeyError as error:
        raise SettingError(f"override {override!r}: {error}") from None
    except yaml.YAMLError:
        raise SettingError(f"override {override!r}: {text!r} is not a YAML value") from None
