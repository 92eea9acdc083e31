"""What the flow spends beside its stages' own work, the imports and one server start.

    python -m benchmarks.orchestration [OPTIONS OF flows.pipeline]

runs the experiment of params.yaml once (with `REFINE_HOME` an empty folder, so that nothing is finished before), prints
in seconds where the time went, and writes it to benchmarks/orchestration.md. The stages' processes are timed whole,
their own imports included; what is timed inside of another entry is not counted twice. What is done while Prefect's
server starts (MLflow's database is opened) costs orchestration what it takes beyond that start.
"""

from __future__ import annotations

import contextlib
import functools
import platform
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BEGUN = time.perf_counter()
STAGES, SERVER, IMPORTS = "stages' own work", "wait for Prefect's server", "imports"
DEVICE = "wait for a device that another run holds"
seconds: dict[str, float] = defaultdict(float)
calls: dict[str, int] = defaultdict(int)
_inner: list[float] = []  # of each entry that is open: seconds of the entries inside of it
started: list[float] = []  # seconds until Prefect's server answered


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, its own seconds (without those of timed functions that it calls) added to `name`."""

    @functools.wraps(function)
    def measured(*given: Any, **named: Any) -> Any:
        begun = time.perf_counter()
        _inner.append(0.0)
        try:
            return function(*given, **named)
        finally:
            took = time.perf_counter() - begun
            seconds[name] += took - _inner.pop()
            calls[name] += 1
            if _inner:
                _inner[-1] += took

    return measured


def entered(name: str, opened: Callable[..., Any]) -> Callable[..., Any]:
    """`opened`, a context manager; the seconds until it lets in are added to `name`."""

    @contextlib.contextmanager
    def measured(*given: Any) -> Iterator[Any]:
        with contextlib.ExitStack() as stack:
            yield timed(name, stack.enter_context)(opened(*given))

    return measured


def watched(opened: Callable[[], Any], wait: Callable[[str], None]) -> Callable[[], Any]:
    """`opened`, which gives the address of Prefect's server, noting how long that takes to answer."""

    @contextlib.contextmanager
    def noted() -> Iterator[str]:
        begun = time.perf_counter()
        with opened() as url:

            def ask() -> None:
                wait(url)
                started.append(time.perf_counter() - begun)

            threading.Thread(target=ask, daemon=True).start()
            yield url

    return noted


def watch() -> Callable[[list[str]], None]:
    """Time what the flow is made of. Returns the flow's command."""
    import matplotlib.pyplot  # noqa: F401  (imported where it is used, and an import all the same)
    import mlflow  # noqa: F401

    from flows import artifacts, experiment, pipeline, tasks
    from refine.phases import stages
    from refine.reports import experiment_files
    from refine.services import prefect_api
    from refine.tracking import registry

    prefect_api.prefect_api = watched(prefect_api.prefect_api, prefect_api.wait_until_ready)
    tasks.device_slots = entered(DEVICE, tasks.device_slots)
    parts: list[tuple[Any, str, str]] = [
        (tasks, "run_in_own_process", STAGES),
        (prefect_api, "wait_until_ready", SERVER),
        (prefect_api, "_stop", "Prefect's server stops"),
        (prefect_api, "_send_logs", "Prefect's last logs"),
        (pipeline, "connect", "MLflow's database opens"),
        (experiment, "check", "checks before anything starts"),
        (tasks, "log_checkpoints", "checkpoints to MLflow"),
        (registry, "register", "versions to the registry"),
        (registry, "choose_champion", "champion"),
        (experiment_files, "write", "comparison: table and picture"),
        (artifacts, "publish", "artifacts to Prefect"),
        (tasks, "trained", "records of finished stages"),
        (stages.Stages, "scored_on", "hashes of inputs"),
    ]
    for owner, name, told in parts:
        setattr(owner, name, timed(told, getattr(owner, name)))
    return pipeline.run


def table(total: float) -> list[str]:
    """Where the time went, the longest first, as Markdown."""
    beside = total - started[0] - sum(seconds[name] for name in (STAGES, IMPORTS, DEVICE))
    rest = total - sum(seconds.values())
    rows = [*sorted(seconds.items(), key=lambda one: -one[1]), ("all else: Prefect's engine, MLflow's runs", rest)]
    lines = [f"| {name} | {calls[name] or ''} | {took:.1f} |" for name, took in rows]
    head = ["| what | calls | seconds |", "|---|---|---|"]
    return [*head, *lines, f"| whole flow | | {total:.1f} |", f"| **orchestration** | | **{beside:.1f}** |"]


def report(total: float, arguments: list[str]) -> str:
    """The table, with what it was measured by."""
    command = " ".join(["python -m benchmarks.orchestration", *arguments])
    return "\n".join([
        "# Orchestration", "",
        f"`{command}` on {platform.processor() or platform.machine()}, Python {platform.python_version()}: a whole "
        "experiment. *Orchestration* is all that is not the stages' own work, imports, waiting for other runs or the "
        f"{started[0]:.1f} s in which Prefect's server started (MLflow's database is opened meanwhile).", "",
        *table(total), "",
        f"CPU time of the flow's own process, imports included: {time.process_time():.1f} s.", "",
    ])  # fmt: skip


def main() -> None:
    """Run the flow, print the table, write orchestration.md."""
    run = timed("", watch)()
    seconds[IMPORTS] = time.perf_counter() - BEGUN
    seconds.pop("")
    try:
        run(sys.argv[1:])
    except SystemExit as ended:  # click ends the process, also where all went well
        if ended.code:
            raise
    text = report(time.perf_counter() - BEGUN, sys.argv[1:])
    print(text)
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
