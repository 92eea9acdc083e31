"""Where things lie. `$REFINE_HOME` (default: the working directory) holds what the pipeline writes."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The folder that holds mlflow.db, runs/, results/ and service state."""
    return Path(os.environ.get("REFINE_HOME") or Path.cwd()).resolve()


def prepared() -> Path:
    """Outputs of the data stages: tokenizer/, documents/, needles/. Relative to the checkout, where DVC tracks them."""
    return Path("prepared")


def runs() -> Path:
    """Checkpoint folders, each keyed by the hash of its settings and inputs."""
    return home() / "runs"


def results() -> Path:
    """Tables, metrics and pictures of the experiment."""
    return Path("results")
