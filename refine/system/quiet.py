"""Switch off progress bars and warnings of libraries, where the commands print their own lines."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

MLFLOW_BARS = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"


def quiet_libraries() -> None:
    """Switch off transformers' and datasets' progress bars and warnings for the rest of this process."""
    from transformers.utils import logging as of_transformers

    of_transformers.set_verbosity_error()
    of_transformers.disable_progress_bar()
    quiet_datasets()


def quiet_datasets() -> None:
    """Switch off datasets' progress bars and warnings for the rest of this process."""
    import datasets

    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Switch off transformers' progress bars ("Loading weights", "Writing model shards") for the block."""
    from transformers.utils import logging as of_transformers

    shown = of_transformers.is_progress_bar_enabled()
    of_transformers.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            of_transformers.enable_progress_bar()


@contextlib.contextmanager
def quiet_logger(name: str, level: int = logging.ERROR) -> Iterator[None]:
    """Let the logger `name` log nothing below `level` in the block."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def no_download_bars() -> Iterator[None]:
    """Switch off MLflow's progress bars ("Downloading artifacts") for the block, unless the user set the variable."""
    unset = MLFLOW_BARS not in os.environ
    if unset:
        os.environ[MLFLOW_BARS] = "false"
    try:
        yield
    finally:
        if unset:
            os.environ.pop(MLFLOW_BARS, None)
