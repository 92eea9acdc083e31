"""Addresses of MLflow's pages; empty if MLflow is a database that no server shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

from refine.errors import without_secrets
from refine.tracking.connection import tracking_uri
from refine.tracking.registry import Version

if TYPE_CHECKING:
    from mlflow import MlflowClient

METRIC, OF_POST = "val/loss", "val/answer_loss"  # the curves that the page shows first; it offers the others


def run_page(experiment_id: str, run_id: str) -> str:
    """The page of a run."""
    return _page(f"/experiments/{experiment_id}/runs/{run_id}")


def comparison_page(client: MlflowClient, versions: Sequence[Version]) -> str:
    """The page with the curves of the training runs of `versions`; a click there leads to their settings.

    (An experiment's charts show nested runs only once their parent is unfolded.)
    """
    from mlflow.exceptions import MlflowException

    if not _page("/"):
        return ""
    found = {}
    for version in versions:
        try:
            found[version.run_id] = client.get_run(version.run_id).info.experiment_id
        except MlflowException:  # the run was deleted, its model was not
            continue
    if len(found) < 2:
        return ""
    experiments = list(dict.fromkeys(found.values()))
    phases = {version.phase for version in versions}
    curves = [*([OF_POST] if "post" in phases else []), *([METRIC] if phases != {"post"} else [])]
    shown = f"metric={quote(json.dumps(curves[-1]))}&plot_metric_keys={_listed(curves[::-1])}&x_axis=step"
    return _page(f"/metric?runs={_listed(list(found))}&experiments={_listed(experiments)}&{shown}")


def _listed(values: Sequence[str]) -> str:
    return quote(json.dumps(values, separators=(",", ":")))


def _page(path: str) -> str:
    uri = without_secrets(tracking_uri())
    return f"{uri.rstrip('/')}/#{path}" if uri.startswith(("http://", "https://")) else ""
