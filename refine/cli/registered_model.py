"""A model named ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` on the command line."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

PREFIX = "models:/"


@contextmanager
def fetched(model: str) -> Iterator[str]:
    """The folder of a registered model's version, for as long as the block lasts; any other name as it is."""
    if not model.startswith(PREFIX):
        yield model
        return
    from refine.tracking.connection import connect
    from refine.tracking.registry import download, parse_reference

    parse_reference(model)  # before MLflow is asked for anything
    with tempfile.TemporaryDirectory(prefix="refine-model-") as folder:
        yield str(download(connect(), model, folder))


def record_scores(model: str, metrics: Mapping[str, float]) -> str | None:
    """Add `metrics` to the version that `model` names, and say which; None, and nothing done, for any other name."""
    if not model.startswith(PREFIX):
        return None
    from refine.tracking.connection import connect
    from refine.tracking.registry import add_metrics, parse_reference, version_of

    client = connect()
    version = add_metrics(client, version_of(client, *parse_reference(model)), metrics)
    kept = any(version.metrics.get(name) != value for name, value in metrics.items())
    return f"{version.name} version {version.label}" + (", but for scores that it has over more samples" * kept)
