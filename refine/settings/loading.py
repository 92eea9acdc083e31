"""Reads a settings file, applies overrides, and validates the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refine.errors import SettingError, nearest
from refine.settings.base import validated
from refine.settings.experiment import PretrainingSettings, Settings
from refine.system.readers import mapping, parsed_yaml, read_text


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
    missing = "no such settings file; run from the project's folder, or name it with --params"
    text = read_text(path, "settings in YAML", SettingError, missing)
    values = mapping(parsed_yaml(text, str(path), SettingError), str(path), "sections with settings", SettingError)
    for override in overrides:
        _override(values, override)
    return values


def _override(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    shown = override if len(override) <= 100 else f"{override[:100]}..."
    if not equals or not name:
        raise SettingError(f"override {shown!r}: expected section.key=value")
    *sections, key = name.split(".")
    here = values
    for section in sections:
        if not isinstance(here.get(section), dict):
            raise SettingError(f"override {shown!r}: no section {section!r}{nearest(section, map(str, here))}")
        here = here[section]
    here[key] = parsed_yaml(text, f"override {shown!r} is not a YAML value", SettingError)
