"""The checks of `refine doctor`. Each returns what it found, whether that works, and what to do if it does not."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from refine import paths
from refine.errors import RefineError, SettingError, reason, without_secrets
from refine.services.prefect_api import check_answers as check_prefect
from refine.services.prefect_api import chosen
from refine.system.addresses import local_path
from refine.system.leftovers import temporary_folder
from refine.system.quiet import no_download_bars
from refine.tracking.connection import SQLITE_PREFIX, check_answers, connect, sqlite_file, tracking_uri, writable

if TYPE_CHECKING:
    from mlflow import MlflowClient

Status = Literal["good", "note", "broken"]
PACKAGES = ("torch", "transformers", "mlflow", "prefect", "dvc", "datasets", "fla-core", "triton")
OPTIONAL = ("triton",)
PROJECT = "refine-fast-weights"  # in pyproject.toml


@dataclass(frozen=True)
class Finding:
    """The result of a check. broken: something needed does not work. note: worth knowing. advice: what to do."""

    topic: str
    status: Status
    found: str
    advice: str = ""


def examine() -> list[Finding]:
    """Every finding, in the order of CHECKS. The checks run in parallel and take seconds."""
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(_guarded, check) for check in CHECKS]
        return [finding for result in waiting for finding in result.result()]


def _guarded(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    try:
        return list(check())
    except Exception as error:  # a check that fails is itself a finding
        found = f"{type(error).__name__}: {reason(error)}"
        return [Finding(check.__name__.strip("_"), "broken", found, "report this error")]


def _python() -> Iterator[Finding]:
    wanted = sys.version_info >= (3, 11)
    yield Finding(
        "python",
        "good" if wanted else "broken",
        f"{platform.python_version()} in {sys.prefix}, {os.cpu_count()} cores",
        "" if wanted else "use Python 3.11 or later",
    )
    if shutil.which("git") is None:
        yield Finding("git", "note", "not installed", "install git: without it, runs do not record their commit")


def _packages() -> Iterator[Finding]:
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            if name not in OPTIONAL:
                missing.append(name)
    yield Finding("packages", "good", ", ".join(found))
    if missing:
        yield Finding("packages", "broken", f"not installed: {', '.join(missing)}", "run `make install`")
    if unsupported := list(_unsupported()):
        yield Finding("packages", "broken", f"unsupported versions: {', '.join(unsupported)}", "run `make install`")


def _unsupported() -> Iterator[str]:
    """Installed packages whose versions pyproject.toml does not allow, each with the expected version."""
    from packaging.requirements import Requirement

    for line in importlib.metadata.requires(PROJECT) or ():
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            there = importlib.metadata.version(wanted.name)
            if not wanted.specifier.contains(there, prereleases=True):
                yield f"{wanted.name} {there} (expected {wanted.specifier})"


def _device() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
        yield Finding("device", "good", f"{len(names)} × {names[0]}")
    elif shutil.which("nvidia-smi"):
        yield Finding(
            "device",
            "broken",
            f"there is a GPU, but torch {torch.__version__} does not find it",
            "install a CUDA build of torch that supports the driver",
        )
    else:
        yield Finding("device", "good", f"CPU, {torch.get_num_threads()} threads (no GPU)")
    yield from _kernels(torch.cuda.is_available())


def _kernels(cuda: bool) -> Iterator[Finding]:
    try:
        import torch

        from refine.ops.delta_rule import fla

        used = fla.chosen(torch.device("cuda" if cuda else "cpu"), torch.bfloat16 if cuda else torch.float32)
    except SettingError as error:
        yield Finding("kernels", "broken", str(error), "unset REFINE_KERNELS")
        return
    if used:
        yield Finding("kernels", "good", "flash-linear-attention's for the delta rule, PyTorch for LaCT")
    elif cuda and (lacking := fla.lacking()):
        yield Finding(
            "kernels",
            "note",
            f"PyTorch ({lacking})",
            "install the extra: pip install -e '.[gpu]'; training is several times faster with it",
        )
    else:
        yield Finding("kernels", "good", "PyTorch")


def _home() -> Iterator[Finding]:
    home = paths.home()
    try:
        writable(home)
    except RefineError as error:
        yield Finding("home", "broken", str(error).split(";")[0], "set REFINE_HOME to a writable folder")
        return
    free = shutil.disk_usage(home).free / 1e9
    low = free < 5
    yield Finding(
        "home",
        "note" if low else "good",
        f"{home}, {free:.0f} GB free",
        "checkpoints may not fit: free some space, or set REFINE_HOME" if low else "",
    )


def _mlflow() -> Iterator[Finding]:
    uri = tracking_uri()
    try:
        check_answers(uri, patience=2.0)
    except RefineError as error:
        found, _, advice = str(error).partition("; ")
        yield Finding("mlflow", "broken", found, advice)
        return
    if uri.startswith("http"):
        yield Finding("mlflow", "good", f"server {without_secrets(uri)} answers")
    else:
        yield Finding(
            "mlflow",
            "good",
            f"no server; runs are recorded in {without_secrets(uri)}",
            "`refine up` starts one that shows them",
        )


def _models() -> Iterator[Finding]:
    """Whether workers can fetch the models. An experiment that was made without a server keeps its files in a folder of
    the machine that made it, until `refine up` moves their addresses."""
    uri = tracking_uri()
    served = uri.startswith("http")
    if not served and not (uri.startswith(SQLITE_PREFIX) and sqlite_file(uri).exists()):
        return
    try:
        check_answers(uri, patience=2.0)
        client = connect(uri)
        found = client.search_experiments()
    except RefineError:  # the check of MLflow tells it
        return
    ours = [one for one in found if one.name != "Default"]  # MLflow makes that one
    bound = {one.name: place for one in ours if (place := local_path(one.artifact_location)) is not None}
    if served and bound:
        here = all(place.parent.is_dir() for place in bound.values())
        yield Finding(
            "models",
            "note" if here else "broken",
            f"experiments made without a server, whose models only the machine that made them can read: "
            f"{', '.join(sorted(bound))}",
            "`refine down` and `refine up` on the servers' machine let MLflow's server serve them; or run them under "
            "another name (--experiment)",
        )
    yield from _fetched(client, served)


def _fetched(client: MlflowClient, served: bool) -> Iterator[Finding]:
    """Fetches a small file of the newest version, as a worker fetches its model. served: by an MLflow server."""
    newest = client.search_model_versions(max_results=1, order_by=["creation_timestamp DESC"])
    if not newest:
        return
    name, number = newest[0].name, newest[0].version
    place = client.get_model_version_download_uri(name, number)
    if served and local_path(place) is not None:
        return  # it can be read here, and not by workers; the check above tells it
    import mlflow

    try:
        with temporary_folder("doctor") as folder, no_download_bars():
            mlflow.artifacts.download_artifacts(
                artifact_uri=f"models:/{name}/{number}/config.json",
                dst_path=str(folder),
                tracking_uri=client.tracking_uri,
            )
    except Exception as error:  # MLflow, its HTTP client and boto raise their own
        found = f"{name} version {number} cannot be fetched: {reason(without_secrets(str(error)))}"
        yield Finding("models", "broken", found, "check the place and the credentials of MLflow's artifacts")
        return
    how = "through the server, as a worker does" if served else "without a server"
    yield Finding("models", "good", f"a file of {name} version {number} was fetched {how}")


def _prefect() -> Iterator[Finding]:
    try:
        api = chosen()
        if api:
            check_prefect(api)
    except RefineError as error:
        found, _, advice = str(error).partition("; ")
        yield Finding("prefect", "broken", found, advice)
        return
    if api:
        yield Finding("prefect", "good", f"server {api.url} answers")
    else:
        yield Finding(
            "prefect",
            "good",
            "no server; a flow starts a temporary one",
            "`refine up` starts one that shows and schedules runs",
        )


def _settings() -> Iterator[Finding]:
    from refine import settings

    if not Path("params.yaml").exists():
        yield Finding("settings", "broken", "no params.yaml here", "run `refine doctor` in the project's folder")
        return
    try:
        settings.load()
    except RefineError as error:
        yield Finding("settings", "broken", str(error), "correct params.yaml")
        return
    yield Finding("settings", "good", "params.yaml is valid")


def _data() -> Iterator[Finding]:
    from refine.data.corpus import version

    if not Path("params.yaml").exists():
        return
    expected = version.recorded()
    if expected is None:
        yield Finding("data", "broken", "no data.dvc", "run `refine data fetch`")
    elif not version.DATA.is_dir():
        yield Finding("data", "note", "not fetched yet", "run `refine data fetch` (`make run` does)")
    elif differs := version.differences(version.of(version.DATA), expected):
        yield Finding(
            "data", "broken", f"not what data.dvc records: {', '.join(differs)}", "`refine data fetch --replace`"
        )
    else:
        yield Finding("data", "good", f"{expected.md5}, as data.dvc records")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _python,
    _packages,
    _device,
    _home,
    _settings,
    _data,
    _mlflow,
    _models,
    _prefect,
)
