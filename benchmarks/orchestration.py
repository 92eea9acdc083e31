"""What the flow spends beside its stages' own work, the imports and one server start.

    python -m benchmarks.orchestration [OPTIONS OF flows.pipeline]

Set `REFINE_HOME` to an empty folder, so that no stage is already finished. The benchmark runs the experiment of
params.yaml once, prints in seconds where the time went, and writes that to benchmarks/orchestration.md. A stage's
process counts from start to end, with its own imports. Time inside another entry is not counted twice. MLflow's
database opens while Prefect's server starts: only the part beyond the server's start counts as orchestration.
"""

from __future__ import annotations

import contextlib
import functools
import platform
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

BEGUN = time.perf_counter()
STAGES, SERVER, IMPORTS = "stages' own work", "wait for Prefect's server", "imports"
DEVICE = "wait for a device that another run holds"
seconds: dict[str, float] = defaultdict(float)
calls: dict[str, int] = defaultdict(int)
_inner: list[float] = []  # for each open entry: the seconds of the entries inside it
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
    """`opened`, a context manager; the seconds that entering it takes are added to `name`."""

    @contextlib.contextmanager
    def measured(*given: Any) -> Iterator[Any]:
        with contextlib.ExitStack() as stack:
            yield timed(name, stack.enter_context)(opened(*given))

    return measured


def watched(opened: Callable[[], Any], wait: Callable[[str], None]) -> Callable[[], Any]:
    """`opened`, which yields the address of Prefect's server; notes how long the server takes to answer."""

    @contextlib.contextmanager
    def timed_start() -> Iterator[str]:
        begun = time.perf_counter()
        with opened() as url:

            def ask() -> None:
                wait(url)
                started.append(time.perf_counter() - begun)

            threading.Thread(target=ask, daemon=True).start()
            yield url

    return timed_start


def watch() -> Callable[[list[str]], None]:
    """Time the flow's parts. Returns the flow's command."""
    import matplotlib.pyplot  # noqa: F401  (the flow imports it late; it counts as an import here)
    import mlflow  # noqa: F401

    from flows import artifacts, pipeline, preflight, tasks
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
        (preflight, "check", "checks before anything starts"),
        (tasks, "log_checkpoints", "checkpoints to MLflow"),
        (registry, "register", "versions to the registry"),
        (tasks, "choose_champion", "champion"),
        (experiment_files, "write", "comparison: table and picture"),
        (artifacts, "publish", "artifacts to Prefect"),
        (tasks, "trained", "records of finished stages"),
        (stages.Stages, "scored_on", "hashes of inputs"),
    ]
    for owner, name, entry in parts:
        setattr(owner, name, timed(entry, getattr(owner, name)))
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
    """The table, with the command and the machine."""
    command = " ".join(["python -m benchmarks.orchestration", *arguments])
    head = (
        f"`{command}` on {platform.processor() or platform.machine()}, Python {platform.python_version()}: one "
        "experiment. *Orchestration* is the time without the stages' own work, imports, waiting for other runs and the "
        f"{started[0]:.1f} s in which Prefect's server started (MLflow's database opens meanwhile)."
    )
    cpu = f"CPU time of the flow's own process, imports included: {time.process_time():.1f} s."
    return "\n".join(["# Orchestration", "", head, "", *table(total), "", cpu, ""])


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def main(options: tuple[str, ...]) -> None:
    """Run the flow with OPTIONS (those of flows.pipeline), print the table, write orchestration.md."""
    run = timed("", watch)()
    seconds[IMPORTS] = time.perf_counter() - BEGUN
    seconds.pop("")
    try:
        run(list(options))
    except SystemExit as ended:  # click ends the process, also after success
        if ended.code:
            raise
    text = report(time.perf_counter() - BEGUN, list(options))
    click.echo(text)
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
