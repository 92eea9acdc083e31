"""Fixtures for tests of the data: small raw documents, sources on disk, a version record, a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from refine.data.corpus import version
from refine.settings.data import DataSettings, ParquetSource

VERSE = "Of Mans First Disobedience, and the Fruit of that Forbidden Tree, whose mortal tast brought Death. "


@pytest.fixture
def parquet(tmp_path: Path) -> Callable[..., str]:
    """Write columns as `name`.parquet and return its path."""

    def write(name: str, **columns: list[Any]) -> str:
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table(columns), path)
        return str(path)

    return write


@pytest.fixture
def small_settings(parquet) -> DataSettings:
    """Three splits of three documents each, from parquet files."""
    sources = {}
    for split in ("train", "validation", "second_domain"):
        titles = [f"{split} {number}" for number in range(3)]
        path = parquet(f"source_{split}", text=[f"{title}: {VERSE * 20}" for title in titles], title=titles)
        sources[split] = (ParquetSource(path=path, title_column="title"),)
    return DataSettings(**sources)


@pytest.fixture
def write_record(tmp_path: Path) -> Callable[..., Path]:
    """Write data.dvc for a folder, as `dvc add` and `refine data fetch` do."""

    def write(folder: Path, meta: bool = True, made: dict[str, str] | None = None) -> Path:
        found = version.of(folder)
        content: dict[str, Any] = {"outs": [{"md5": found.md5, "hash": "md5", "path": folder.name}]}
        if meta:
            content["meta"] = {"md5": found.md5, "made": made or {}, "files": dict(found.files)}
        path = tmp_path / "data.dvc"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


@pytest.fixture(scope="session")
def small_tokenizer() -> Any:
    """A trained BPE of 320 pieces."""
    from refine.data.tokenizer import train_tokenizer

    return train_tokenizer([VERSE * 30, "In the beginning God created the heaven and the earth.\n" * 30], 320)
