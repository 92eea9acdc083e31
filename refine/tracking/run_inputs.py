"""What a run read, as MLflow's dataset inputs: each with a name, a hash, where it lies and what it was made from.

The run of an experiment names the raw texts of data/, by the hashes in data.dvc; each training the prepared files that
it read. MLflow lists the runs of an experiment by these.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refine.data.corpus import version
from refine.data.parquet_files import open_parquet
from refine.identity import hash_of_files

if TYPE_CHECKING:
    from mlflow import MlflowClient

CONTEXTS = {"train": "training", "validation": "validation", "recall": "validation"}  # of a split; others: evaluation
DIGEST = 36  # characters of a digest: MLflow's limit
CONTEXT = "mlflow.data.context"


@dataclass(frozen=True)
class RunInput:
    """A file that a run read. made_from: the sources of its text, as in params.yaml. profile: what else is known."""

    name: str
    digest: str
    file: Path
    context: str
    made_from: Any = None
    profile: Mapping[str, Any] = field(default_factory=dict)


def raw_texts(sources: Mapping[str, Any], folder: Path = version.DATA, record: Path = version.RECORD) -> list[RunInput]:
    """The texts of data/ that data.dvc records, with their `sources` by split; empty without data.dvc.

    Raises DataError: data.dvc is not what DVC writes.
    """
    known = version.recorded(record)
    found = []
    for name, digest in (known.files if known is not None else {}).items():
        split = Path(name).stem
        context = CONTEXTS.get(split, "evaluation")
        profile = {"data.dvc": known.md5 if known is not None else "", **_rows(folder / name)}
        found.append(RunInput(f"data/{split}", digest, folder / name, context, sources.get(split), profile))
    return found


def prepared_files(folder: Path, files: Iterable[Path]) -> list[RunInput]:
    """Files of the prepared data in `folder`, by their names there: `documents/train`, `questions/..._validation`."""
    found = []
    for file in files:
        split = next((split for split in CONTEXTS if file.stem.endswith(split)), "")
        name = file.relative_to(folder).with_suffix("").as_posix()
        found.append(RunInput(name, hash_of_files(file), file, CONTEXTS.get(split, "evaluation"), profile=_rows(file)))
    return found


def log_inputs(client: MlflowClient, run_id: str, inputs: Iterable[RunInput]) -> None:
    """Log `inputs` to a run; one that the run has already is not logged twice."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    logged = []
    for one in inputs:
        source = {"uri": one.file.resolve().as_uri(), **({} if one.made_from is None else {"made_from": one.made_from})}
        dataset = Dataset(
            one.name, one.digest[:DIGEST], "local", json.dumps(source), profile=json.dumps(dict(one.profile))
        )
        logged.append(DatasetInput(dataset, [InputTag(CONTEXT, one.context)]))
    if logged:
        client.log_inputs(run_id, logged)


def _rows(file: Path) -> dict[str, int]:
    """The number of rows of a parquet file; nothing if the file is not on this machine."""
    if not file.is_file():
        return {}
    with open_parquet(file, "run `refine data fetch`") as opened:
        return {"num_rows": opened.metadata.num_rows}
