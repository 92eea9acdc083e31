"""Shared ground of the tests: one thread a worker, no telemetry, and the markers that depend on the machine."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest_plugins = [
    f"tests.fixtures.{room}" for room in ("arms", "chat", "evaluation", "flows", "machines", "tracking", "training")
]

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

CHECKOUT = Path(__file__).resolve().parent.parent
SHARED = CHECKOUT.parent / "shared" / "data"


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _has_fla() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("fla", "triton"))


REASONS = {
    "requires_cuda": (_has_cuda, "needs a CUDA device"),
    "requires_fla": (_has_fla, "needs flash-linear-attention and triton"),
    "requires_shared": (SHARED.is_dir, "needs the real evaluation files beside the checkout"),
}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`pytest -m requires_cuda` imports only the files with such tests: a GPU machine may lack what others import."""
    wanted = config.option.markexpr
    if not re.fullmatch(r"requires_cuda( and .*)?", wanted) or " or " in wanted:
        return None
    files = collection_path.rglob("test_*.py") if collection_path.is_dir() else [collection_path]
    return None if any("mark.requires_cuda" in file.read_text(encoding="utf-8") for file in files) else True


# Files that run on every kind of model -> the kinds whose tests there are slow ones: combinations of what others have,
# and KDA, whose decay has tests of its own.
MIXTURES = ("qwen3_5_moe", "qwen3_next", "kimi_linear")
LATER = dict.fromkeys(
    ("tests/models", "tests/objective"), (*MIXTURES, "gated_deltaproduct", "comba", "kda", "olmo_hybrid")
)


@pytest.hookimpl(tryfirst=True)  # before -m takes its choice
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine cannot run. Mark as slow what LATER names; the tests of a kind alone,
    with its formulas, are not among them."""
    for item in items:
        kinds = LATER.get(item.path.parent.relative_to(CHECKOUT).as_posix(), ())
        if any(kind in values for values in re.findall(r"\[(.*)\]", item.name) for kind in kinds):
            item.add_marker(pytest.mark.slow)
    for name, (available, reason) in REASONS.items():
        marked = [item for item in items if item.get_closest_marker(name)]
        if marked and not available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The project's folder."""
    return CHECKOUT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real evaluation files; tests that use it are marked requires_shared."""
    return SHARED


def modules_imported(source: ast.AST) -> set[str]:
    """Modules of the project that `source` imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(source):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.split(".")[0] in ("refine", "flows")}


def file_of(module: str) -> Path | None:
    """The file of a module of the project, or None where the name is no module's."""
    place = CHECKOUT / Path(*module.split("."))
    found = [path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()]
    return found[0] if found else None


@pytest.fixture(scope="session")
def imported_files() -> Callable[..., set[str]]:
    """The project's files that modules import, and those import in turn, as paths; empty packages are left out."""

    def found(*start: str, apart: Callable[[str], bool] = lambda name: False) -> set[str]:
        seen: set[str] = set()
        waiting = list(start)
        while waiting:
            file = file_of(waiting.pop())
            if file is None or (name := file.relative_to(CHECKOUT).as_posix()) in seen or apart(name):
                continue
            seen.add(name)
            waiting += modules_imported(ast.parse(file.read_text(encoding="utf-8")))
        return {name for name in seen if (CHECKOUT / name).read_text(encoding="utf-8").strip()}

    return found


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> bool:
    """Whether `condition` becomes true within `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def heed_interrupts() -> None:
    """For `preexec_fn`: a test run in the background ignores SIGINT, and its children would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
