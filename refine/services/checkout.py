"""Where a worker's runs find the project: a pull step of flows/prefect.yaml, called by Prefect before each run.

Every worker has its own folder: REFINE_CHECKOUT in its environment (`refine worker` and `refine up` set it to the
folder they were started in), or else the one that `refine deploy --checkout` named.
"""

from __future__ import annotations

import os
from pathlib import Path

from refine.errors import SettingError

VARIABLE = "REFINE_CHECKOUT"
NEEDED = ("params.yaml", "dvc.yaml", "flows")  # what tells the project's folder from others


def enter(default: str) -> dict[str, str]:
    """Go to the project's folder and tell Prefect of it. Raises SettingError where it is not there."""
    folder = check(Path(os.environ.get(VARIABLE) or default))
    os.chdir(folder)
    return {"directory": str(folder)}


def check(folder: Path) -> Path:
    """`folder`, absolute. Raises SettingError where it is not the project's."""
    missing = [name for name in NEEDED if not (folder / name).exists()]
    if missing:
        raise SettingError(
            f"{folder} is not the project's folder on this machine (no {', '.join(missing)}): start the worker in a "
            f"checkout (`refine worker`), set {VARIABLE} for it, or name the folder with `refine deploy --checkout`"
        )
    return folder.absolute()
