"""The project's folder on a worker. Prefect calls `enter` before each run: it is a pull step of flows/prefect.yaml.

A worker uses the folder in its variable REFINE_CHECKOUT, which `refine worker` and `refine up` set to the folder they
start in. A worker without that variable uses the folder of `refine deploy --checkout`.
"""

from __future__ import annotations

import os
from pathlib import Path

from refine.errors import SettingError

VARIABLE = "REFINE_CHECKOUT"
NEEDED = ("params.yaml", "dvc.yaml", "flows")  # in every checkout


def enter(default: str) -> dict[str, str]:
    """Change to the project's folder and return it to Prefect. Raises SettingError if it is not a checkout."""
    folder = check(Path(os.environ.get(VARIABLE) or default))
    os.chdir(folder)
    return {"directory": str(folder)}


def check(folder: Path) -> Path:
    """`folder` as an absolute path. Raises SettingError if it is not a checkout of the project."""
    missing = [name for name in NEEDED if not (folder / name).exists()]
    if missing:
        raise SettingError(
            f"{folder} is not the project's folder on this machine (no {', '.join(missing)}): start the worker in a "
            f"checkout (`refine worker`), set {VARIABLE} for it, or name the folder with `refine deploy --checkout`"
        )
    return folder.absolute()
