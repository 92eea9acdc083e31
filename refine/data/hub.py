"""The Hugging Face hub: one short request before its own clients, which retry for minutes; errors in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refine.errors import DataError, RefineError, ServiceError, reason

ANSWER = 10.0  # longest wait for the answer to the first request [s]


def access_error(what: str, name: str, revision: str | None = None) -> RefineError | None:
    """The error that a download of `what` ("data set" or "tokenizer") `name` would end in, or None."""
    from huggingface_hub import HfApi

    ask = HfApi().dataset_info if what == "data set" else HfApi().model_info
    try:
        ask(name, revision=revision, timeout=ANSWER)
    except Exception as error:
        return one_line_error(error, what, name, revision)
    return None


def one_line_error(error: Exception, what: str, name: str, revision: str | None = None) -> RefineError:
    """An error of `datasets`, transformers or the hub's client in one line. Raises an unknown `error` again."""
    from huggingface_hub import errors

    if isinstance(error, RefineError):
        return error
    if isinstance(error, errors.HfHubHTTPError):
        return DataError(
            f"{what} {name!r} at revision {revision or 'main'}: the hub refuses it ({reason(error)}); "
            "check name and revision, or log in with `hf auth login`"
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ServiceError(
            f"{what} {name!r}: no such folder here, and HF_HUB_OFFLINE keeps it from the hub: unset that, or give a "
            "local folder"
        )
    if isinstance(error, errors.HFValidationError):
        return DataError(f"{what} {name!r}: no such folder, and not from the hub ({reason(error)})")
    if _is_of_transport(error):
        return ServiceError(
            f"{what} {name!r}: no such folder here, and the hub cannot be reached ({reason(error)}); "
            "check the network, or give a local folder"
        )
    known = (
        ValueError | OSError | RuntimeError | LookupError | TypeError | ImportError | AttributeError | AssertionError
    )
    if isinstance(error, known) or type(error) is Exception:  # a bare Exception is what `tokenizers` raises
        return DataError(f"{what} {name!r}: {reason(error)}")
    raise error


def _is_of_transport(error: Exception) -> bool:
    """Whether the connection failed. Compares class names: the hub's client has changed its HTTP library twice."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"ConnectionError", "TimeoutError", "TransportError"})


def load_data_set(name: str, config: str | None, split: str, revision: str | None = None) -> Any:
    """The rows of one split, as `datasets.Dataset`. If the hub does not answer, they come from its cache.

    Raises DataError: no such data set, configuration, split or revision; ServiceError: no answer and not in the cache.
    """
    import datasets

    refused = None if Path(name).is_dir() else access_error("data set", name, revision)
    download = datasets.DownloadConfig(local_files_only=refused is not None)
    try:
        return datasets.load_dataset(name, config, split=split, revision=revision, download_config=download)
    except Exception as error:  # the hub, its cache and the data set's form fail in many ways
        raise refused or one_line_error(error, "data set", name, revision) from None
