"""What `refine doctor` looks at: each check says what it found, whether it will do, and what to do if not."""

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
from typing import Literal

from refine.errors import RefineError, reason

Status = Literal["good", "note", "broken"]
PACKAGES = ("torch", "transformers", "mlflow", "prefect", "dvc", "datasets", "flash-linear-attention", "triton")
OPTIONAL = ("triton",)
PROJECT = "refine-fast-weights"  # in pyproject.toml


@dataclass(frozen=True)
class Finding:
    """What was found. broken: something that is needed does not work; note: worth knowing; advice: what to do."""

    topic: str
    status: Status
    found: str
    advice: str = ""


def examine() -> list[Finding]:
    """Every finding, in the order of the house. The slow checks run beside each other; seconds in all."""
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(_guarded, check) for check in CHECKS]
        return [finding for result in waiting for finding in result.result()]


def _guarded(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    try:
        return list(check())
    except Exception as error:  # a check that fails is itself a finding
        said = reason(error)
        return [Finding(check.__name__.strip("_"), "broken", f"{type(error).__name__}: {said}", "report this")]


def _python() -> Iterator[Finding]:
    wanted = sys.version_info >= (3, 11)
    yield Finding(
        "python",
        "good" if wanted else "broken",
        f"{platform.python_version()} in {sys.prefix}, {os.cpu_count()} cores",
        "" if wanted else "use Python 3.11 or later",
    )
    if shutil.which("git") is None:
        yield Finding("git", "note", "not installed", "install git: without it, runs cannot name the code they ran")


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
    if unfit := list(_unfit()):
        yield Finding("packages", "broken", f"versions that do not fit: {', '.join(unfit)}", "run `make install`")


def _unfit() -> Iterator[str]:
    """Installed packages whose versions pyproject.toml does not admit, each with what it asks for."""
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
            "device", "broken", f"a GPU, but torch {torch.__version__} does not see it",
            "install a CUDA build of torch that fits the driver",
        )  # fmt: skip
    else:
        yield Finding("device", "good", f"CPU, {torch.get_num_threads()} threads (no GPU)")
    yield from _kernels(torch.cuda.is_available())


def _kernels(cuda: bool) -> Iterator[Finding]:
    from refine.errors import SettingError

    try:
        import torch

        from refine.ops.delta_rule import fla

        used = fla.chosen(torch.device("cuda" if cuda else "cpu"), torch.bfloat16 if cuda else torch.float32)
    except SettingError as error:
        yield Finding("kernels", "broken", str(error), "unset REFINE_KERNELS")
        return
    missing = [name for name in ("fla", "triton") if importlib.util.find_spec(name) is None]
    if used:
        yield Finding("kernels", "good", "flash-linear-attention's for DeltaNet and Gated DeltaNet, PyTorch for LaCT")
    elif cuda and missing:
        yield Finding(
            "kernels", "note", f"PyTorch ({', '.join(missing)} not installed)",
            "install the extra: pip install -e '.[gpu]'; training is several times faster with it",
        )  # fmt: skip
    else:
        yield Finding("kernels", "good", "PyTorch")


def _home() -> Iterator[Finding]:
    from refine import paths
    from refine.tracking.connection import writable

    home = paths.home()
    try:
        writable(home)
    except RefineError as error:
        yield Finding("home", "broken", str(error).split(";")[0], "set REFINE_HOME to a folder that can be written to")
        return
    free = shutil.disk_usage(home).free / 1e9
    low = free < 5
    yield Finding(
        "home", "note" if low else "good", f"{home}, {free:.0f} GB free",
        "checkpoints may not fit: free some space, or set REFINE_HOME" if low else "",
    )  # fmt: skip


def _mlflow() -> Iterator[Finding]:
    from refine.tracking.connection import check_answers, tracking_uri, without_password

    uri = tracking_uri()
    try:
        check_answers(uri, patience=2.0)
    except RefineError as error:
        told, _, advice = str(error).partition("; ")
        yield Finding("mlflow", "broken", told, advice)
        return
    if uri.startswith("http"):
        yield Finding("mlflow", "good", f"server {without_password(uri)} answers")
    else:
        yield Finding(
            "mlflow", "good", f"no server; runs are recorded in {without_password(uri)}", "`refine up` shows them"
        )


def _prefect() -> Iterator[Finding]:
    from refine.services.prefect_api import VARIABLE, answers, running_server
    from refine.tracking.connection import without_password

    named = os.environ.get(VARIABLE)
    url = named or running_server()
    if url and answers(url, 2.0):
        yield Finding("prefect", "good", f"server {without_password(url)} answers")
    elif named:
        yield Finding(
            "prefect", "broken", f"server {without_password(named)} does not answer",
            f"start it (`refine up`), mend {VARIABLE}, or unset it",
        )  # fmt: skip
    else:
        yield Finding(
            "prefect", "good", "no server; a flow starts one for itself", "`refine up` shows runs, schedules them"
        )


def _settings() -> Iterator[Finding]:
    from refine import settings

    if not Path("params.yaml").exists():
        yield Finding("settings", "broken", "no params.yaml here", "run it in the project's folder")
        return
    try:
        settings.load()
    except RefineError as error:
        yield Finding("settings", "broken", str(error), "mend params.yaml")
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
    _python, _packages, _device, _home, _settings, _data, _mlflow, _prefect,
)  # fmt: skip
