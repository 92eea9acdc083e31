"""The folders of the project. The pipeline writes to `$REFINE_HOME` (default: the checkout)."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from refine.errors import SettingError

SHARDS = "shards"  # in a checkpoint: the parts that each process of a training has written


def home() -> Path:
    """The folder that holds mlflow.db, runs/ and service state: $REFINE_HOME, or the checkout.

    Raises SettingError if its path has a character that addresses of databases cannot have.
    """
    folder = Path(os.environ.get("REFINE_HOME") or _checkout(Path.cwd())).resolve()
    if refused := sorted({one for one in str(folder) if one == "?" or not one.isprintable()}):
        raise SettingError(
            f"the folder {str(folder)!r} has {', '.join(map(repr, refused))} in its path, which the address of a "
            "database cannot have: set REFINE_HOME to another folder"
        )
    return folder


def _checkout(folder: Path) -> Path:
    """The checkout that `folder` belongs to. `dvc exp run --queue` and `--temp` run in CHECKOUT/.dvc/tmp/exps/NAME and
    remove that folder afterwards; models and records must outlast it. Any other folder is returned as it is."""
    inside = next((one for one in (folder, *folder.parents) if one.parts[-4:-1] == (".dvc", "tmp", "exps")), None)
    return inside.parents[3] if inside else folder


def prepared() -> Path:
    """Outputs of the data stages: tokenizer/, documents/, needles/, questions/. Relative to the checkout, for DVC."""
    return Path("prepared")


def runs() -> Path:
    """The run folders, each named by the hash of its settings and inputs."""
    return home() / "runs"


def results() -> Path:
    """Tables, metrics and pictures of the experiment."""
    return Path("results")


def visible_files(folder: str | Path, pattern: str = "*") -> list[Path]:
    """The files anywhere below `folder` whose names match `pattern`, sorted. Hidden ones, and those in hidden folders,
    are left out: `.DS_Store` and macOS's `._NAME`, or what a killed process left."""
    folder = Path(folder)
    return [
        path for path in sorted(folder.rglob(pattern)) if path.is_file() and not is_hidden(path.relative_to(folder))
    ]


def is_hidden(path: Path) -> bool:
    """Whether a part of a relative path begins with a dot."""
    return any(part.startswith(".") for part in path.parts)


SHIPPED = Path(__file__).parent / "models" / "sample"
REGISTERED = "models:"  # references to models of MLflow's registry begin with it
# By name, because this floor lies below the registry's: only such a reference needs MLflow.
REGISTRY = "refine.tracking.registered_folders"


def model(name: str | Path) -> Path:
    """The folder of the model `name`, if it is a folder. "sample/delta_net", for example, comes with the package, and
    "models:/NAME@champion" is copied from MLflow's registry.

    Raises ServiceError: MLflow's registry does not have the model, or does not answer.
    """
    if str(name).startswith(REGISTERED):
        return Path(importlib.import_module(REGISTRY).folder_of(str(name)))
    folder = Path(name)
    prefix, _, kind = str(name).partition("/")
    return SHIPPED / kind if prefix == "sample" and kind in shipped_models() and not folder.is_dir() else folder


def shipped_models() -> list[str]:
    """Names of the models that come with the package; "sample/" + name loads one."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))
