"""What `refine up` noted of the services that it started."""

from __future__ import annotations

import json
from pathlib import Path

from refine import paths


def state_file() -> Path:
    """Where it is noted."""
    return paths.home() / "services" / "state.json"


def noted(name: str) -> str | None:
    """What `refine up` noted under `name` (prefect, prefect_api, mlflow, pool), if it started something."""
    try:
        return str(json.loads(state_file().read_text(encoding="utf-8"))[name])
    except (OSError, ValueError, KeyError, TypeError):
        return None
