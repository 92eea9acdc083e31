"""The model card of a run: its record, in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refine.training.model_card import CARD, Card, attends, licence_of

__all__ = ["CARD", "card_of"]


def card_of(record: Mapping[str, Any], start: str = "") -> str:
    """The text of the card. record: result.json's, with the model's config.json as `model`. start: the starting
    model's folder or name, if there was one.

    Its scores are the last validation's, which have no intervals; a registered version's card has those.
    """
    phase, arm = str(record.get("phase", "")), str(record.get("arm", ""))
    model = record.get("model")
    config = model if isinstance(model, dict) else {}
    title = f"{phase} {arm}".strip() or "trained model"
    started = record.get("start")
    card = Card(
        title=title,
        model_type=str(config.get("model_type") or "fast-weight model"),
        phase=phase,
        arm="" if phase == "start" else arm,
        parameters=int(record.get("parameters", 0)),
        made_from=_shown(start),
        data=record.get("data") or {},
        settings=record.get("settings") or {},
        origin={
            **(record.get("origin") or {}),
            "steps": record.get("steps"),
            "tokens": record.get("tokens"),
            "seed": record.get("seed"),
            "start": started if isinstance(started, dict) else None,
        },
        scores={name: value for name, value in (record.get("metrics") or {}).items() if name.startswith("val/")},
        licence=licence_of(start) if start else "",
        attends=attends(config),
    )
    return card.text()


def _shown(start: str) -> str:
    """The starting model's name: a hub name as it is, of a folder the last two parts, which tell no home."""
    parts = Path(start).parts
    return start if len(parts) <= 2 else "/".join(parts[-2:])
