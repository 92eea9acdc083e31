"""Models of MLflow's registry on the command line, as ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

PREFIX = "models:/"


@contextmanager
def fetched(model: str) -> Iterator[str]:
    """The folder of a registered model, which lasts as long as the block. Any other name is returned as it is."""
    if not model.startswith(PREFIX):
        yield model
        return
    from refine.system.leftovers import temporary_folder
    from refine.tracking.connection import connect
    from refine.tracking.registry import download, parse_reference

    parse_reference(model)  # refuses a malformed name before MLflow is imported
    with temporary_folder("model") as folder:
        yield str(download(connect(), model, folder))


def record_scores(model: str, metrics: Mapping[str, float]) -> str | None:
    """Add `metrics` to the registered version `model`. Returns a text that names it; None for any other name."""
    if not model.startswith(PREFIX):
        return None
    from refine.tracking.connection import connect
    from refine.tracking.registry import add_metrics, parse_reference, version_of

    client = connect()
    version = add_metrics(client, version_of(client, *parse_reference(model)), metrics)
    kept = any(version.metrics.get(name) != value for name, value in metrics.items())
    return f"{version.name} version {version.label}" + (", except scores that it has from more samples" * kept)
