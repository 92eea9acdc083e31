"""Models of MLflow's registry on the command line: their folder for a while, and their scores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from refine.tracking.references import is_reference, parse_reference

if TYPE_CHECKING:
    from refine.evaluation.record import Evaluation


@contextmanager
def fetched(model: str) -> Iterator[str]:
    """The folder of a registered model, which lasts as long as the block. Any other name is returned as it is."""
    if not is_reference(model):
        yield model
        return
    parse_reference(model)  # refuses a malformed name before MLflow is imported
    from refine.system.leftovers import temporary_folder
    from refine.tracking.connection import connect
    from refine.tracking.registry import download

    with temporary_folder("model") as folder:
        yield str(download(connect(), model, folder))


def record_scores(
    model: str, found: Evaluation, folder: Path, complete: bool = False, rescore: bool = False
) -> str | None:
    """Record the evaluation `found`, whose files are in `folder`, and add its scores to the registered version `model`.
    Returns a text that names the version and what became of the scores; None for any other name.

    complete: all documents and prompts of the data were scored. rescore: these scores replace those the version is
    compared by.
    """
    if not is_reference(model):
        return None
    from refine.tracking.connection import connect
    from refine.tracking.evaluation_record import is_own, record_evaluation, scored_on
    from refine.tracking.registry import version_of

    client = connect()
    version = version_of(client, *parse_reference(model))
    own = rescore or is_own(version, scored_on(found), complete)
    files = [file for name in ("evaluation.json", "table.md", "answers.jsonl") if (file := folder / name).exists()]
    version = record_evaluation(client, version, found, files, own)
    named = f"{version.name} version {version.label}"
    if own:
        return f"{named}, as the scores that it is compared by"
    kept = any(version.extra.get(name) != value for name, value in found.metrics().items())
    return f"{named}, as extra scores" + (", except those that it has from more samples" * kept)
