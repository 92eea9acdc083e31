"""Rows of a data set: a local folder, or the Hugging Face hub (from its cache where the hub does not answer)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refine.data import hub


def data_set(name: str, config: str | None, split: str, revision: str | None = None) -> Any:
    """The rows of one split, as `datasets.Dataset`.

    Raises DataError: no such data set, configuration, split or revision; ServiceError: the hub cannot be reached.
    """
    import datasets

    refused = None if Path(name).is_dir() else hub.obstacle("data set", name, revision)
    download = datasets.DownloadConfig(local_files_only=refused is not None)
    try:
        return datasets.load_dataset(name, config, split=split, revision=revision, download_config=download)
    except Exception as error:  # the hub, its cache and the data set's form fail in many ways
        raise refused or hub.in_words(error, "data set", name, revision) from None
