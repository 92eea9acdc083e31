"""The model card of a registered version: its scores with intervals, its settings, and what it was made from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refine.errors import ServiceError
from refine.system.readers import read_json
from refine.tracking.tags import ARM, CODE, COMMIT, DATA, DIRTY, EXPERIMENT, PHASE, SEED
from refine.training.model_card import Card, attends, licence_of

ORIGIN = {COMMIT: "git commit", DIRTY: "uncommitted changes", CODE: "hash of the code", SEED: "seed"}


def version_card(
    name: str, folder: Path, metrics: Mapping[str, float], settings: Mapping[str, Any], tags: Mapping[str, str]
) -> str:
    """The text of the card of the model in `folder`, about to be a version of `name`.

    Raises ServiceError: config.json is not readable.
    """
    config = read_json(folder / "config.json", "the fields of a model's config", ServiceError)
    phase, arm = tags.get(PHASE, ""), tags.get(ARM, "")
    trained = f"{phase} {arm}".strip()
    of = f", of experiment {tags[EXPERIMENT]}" if tags.get(EXPERIMENT) else ""
    card = Card(
        title=f"{name}{trained and ': '}{trained}{of}",
        model_type=str(config.get("model_type") or "fast-weight model"),
        phase=phase,
        arm=arm,
        made_from=str(settings.get("model.checkpoint") or ""),
        data={"data.dvc (md5)": tags.get(DATA)},
        settings=settings,
        origin={title: tags.get(tag) for tag, title in ORIGIN.items()},
        scores={one: value for one, value in metrics.items() if math.isfinite(value)},
        licence=licence_of(folder),
        attends=attends(config),
    )
    return card.text()
