"""Names of runs in MLflow and Prefect: they begin with the settings that differ, as in `mid.steps=8: none, sft`.

A setting differs if it is not that of the committed settings file: set for this run (`-S`, `dvc exp run -S`, a
deployment's overrides), or edited.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refine.errors import SettingError
from refine.identity import committed, flat
from refine.settings import Settings
from refine.settings.base import validated
from refine.system.readers import parsed_yaml

MOST, VALUE, LENGTH = 4, 40, 200  # settings in a name; characters of a value, and of a name


def what_differs(settings: Settings, params: str, overrides: Sequence[str] | None) -> list[str]:
    """The settings that differ from the committed file `params`, as in `mid.steps=8`. Where none is committed that
    this version can read: those of `overrides`."""
    text = committed(Path(params))
    try:
        before = None if text is None else validated(Settings, parsed_yaml(text, params, SettingError))
    except SettingError:  # of another version
        before = None
    if before is None:
        return _overridden(overrides)
    old, new = _values(before), _values(settings)
    return [_shown(name, value) for name, value in new.items() if name not in old or old[name] != value]


def titled(title: str, differing: Sequence[str]) -> str:
    """`title`, after the settings that differ; of many the first few."""
    if not differing:
        return title
    more = [f"{len(differing) - MOST} more"] if len(differing) > MOST else []
    return f"{', '.join([*differing[:MOST], *more])}: {title}"[:LENGTH]


def name_with_overrides(name: str, overrides: Sequence[str] | None) -> str:
    """`name` after the overridden settings, as in `mid.objective.reward=hybrid, seed=3: sweep`."""
    return titled(name, _overridden(overrides))


def _overridden(overrides: Sequence[str] | None) -> list[str]:
    pairs = [one.partition("=") for one in overrides or ()]
    return [_shown(setting, value.strip("\"'")) for setting, _, value in pairs]


def _values(settings: Settings) -> Mapping[str, Any]:
    return flat(settings.model_dump(mode="json"))


def _shown(setting: str, value: Any) -> str:
    """The setting without `training.`, and its value in JSON, shortened; a text without quotes."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    short = text if len(text) <= VALUE else f"{text[: VALUE - 1]}…"
    return f"{setting.removeprefix('training.')}={short}"
