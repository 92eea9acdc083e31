"""Copies of model folders to and from MLflow's artifacts (a folder, S3 or a server), with retries while the store does
not answer. A logged model is READY once its copy is complete, and registered only then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from refine.errors import ServiceError, reason
from refine.system import retries
from refine.system.files import write_text
from refine.system.leftovers import temporary_folder
from refine.system.retries import patiently
from refine.tracking.pyfunc_model import write_flavour
from refine.tracking.served_artifacts import SCHEME

if TYPE_CHECKING:
    from mlflow import MlflowClient

# In messages of S3 and its client, about errors that no retry mends.
LASTING = ("NoSuchBucket", "AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "credentials")

T = TypeVar("T")


def store(
    client: MlflowClient,
    folder: str | Path,
    *,
    experiment_id: str,
    name: str,
    run_id: str,
    tags: Mapping[str, str],
    card: str = "",
) -> str:
    """Copy the model in `folder` to a new logged model, with MLmodel, by which MLflow loads it, and `card` as its
    README.md. Returns its id once the copy is complete.

    Raises ServiceError if the store does not answer or refuses; the logged model is then FAILED.
    """
    logged = client.create_logged_model(
        experiment_id, name=name, source_run_id=run_id, tags=dict(tags), model_type="causal-lm"
    )
    try:
        from_store(lambda: client.log_model_artifacts(logged.model_id, str(folder)), f"storing the model in {folder}")
        with temporary_folder("flavour") as temporary:
            added = temporary / "added"
            write_flavour(added, str(logged.model_id), run_id)
            if card:
                write_text(added / "README.md", card)
            from_store(lambda: client.log_model_artifacts(logged.model_id, str(added)), f"storing MLmodel of {folder}")
    except BaseException:
        with contextlib.suppress(Exception):
            client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    return str(logged.model_id)


def from_store(action: Callable[[], T], what: str) -> T:
    """The result of `action`, a request to the store of models. A failure that may pass is retried.

    what: names the request in the error. Raises ServiceError, in one line.
    """
    try:
        return patiently(action, lambda error: not _served(error) and not _lasting(error), what)
    except Exception as error:  # MLflow, its HTTP client and boto raise their own
        if _served(error):
            raise ServiceError(
                f"{what}: an MLflow server keeps the model, and none is in use: start it (`refine up`), or set "
                "MLFLOW_TRACKING_URI to yours"
            ) from None
        tried = "" if _lasting(error) else f", tried for {retries.PATIENCE:.0f} s"
        advice = "check credentials, bucket and address of MLflow's artifacts, and run again"
        raise ServiceError(f"{what}: failed{tried} ({reason(error, 300)}); {advice}") from None


def _served(error: Exception) -> bool:
    return SCHEME in str(error) and "tracking" in str(error)


def _lasting(error: Exception) -> bool:
    return any(sign in str(error) for sign in LASTING)
