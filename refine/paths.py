"""Where things lie. `$REFINE_HOME` (default: the checkout) holds what the pipeline writes."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The folder that holds mlflow.db, runs/ and service state: $REFINE_HOME, or the checkout."""
    return Path(os.environ.get("REFINE_HOME") or _checkout(Path.cwd())).resolve()


def _checkout(folder: Path) -> Path:
    """`folder`, or the checkout that it is a copy of: DVC runs `dvc exp run --queue` and `--temp` in
    CHECKOUT/.dvc/tmp/exps/NAME and removes that afterwards; models and records have to outlast it."""
    inside = next((one for one in (folder, *folder.parents) if one.parts[-4:-1] == (".dvc", "tmp", "exps")), None)
    return inside.parents[3] if inside else folder


def prepared() -> Path:
    """Outputs of the data stages: tokenizer/, documents/, needles/. Relative to the checkout, where DVC tracks them."""
    return Path("prepared")


def runs() -> Path:
    """Checkpoint folders, each keyed by the hash of its settings and inputs."""
    return home() / "runs"


def results() -> Path:
    """Tables, metrics and pictures of the experiment."""
    return Path("results")


SHIPPED = Path(__file__).parent / "models" / "sample"


def model(name: str | Path) -> Path:
    """Where the model `name` lies, if it is a folder: "sample/delta_net" and its like come with the package."""
    folder = Path(name)
    prefix, _, kind = str(name).partition("/")
    return SHIPPED / kind if prefix == "sample" and kind in shipped_models() and not folder.is_dir() else folder


def shipped_models() -> list[str]:
    """What comes with the package: "sample/" + name loads each."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))
