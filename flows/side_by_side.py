"""Run a task several times at once: as many as there are devices, each in a thread that waits for its process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefect.futures import PrefectFuture, as_completed, wait
from prefect.task_runners import ThreadPoolTaskRunner

from flows.progress import say
from refine.system.devices import devices
from refine.system.together import together


def at_once(processes: int = 1) -> int:
    """How many trainings of `processes` processes each fit on this machine's devices, at least one."""
    return max(1, len(devices()) // processes)


def side_by_side(task: Any, calls: Sequence[Mapping[str, Any]], workers: int) -> list[Any]:
    """The results of `task(**call)` for all calls, in their order; `workers` of them run at a time.

    After an error no further call starts. Those that run come to their ends, since a later run goes on from what they
    made; then the error is raised. An interrupt ends their processes.
    """
    waiting, results = list(enumerate(calls)), dict[int, Any]()
    futures: dict[PrefectFuture[Any], int] = {}
    runner = ThreadPoolTaskRunner[Any](max_workers=workers)
    with runner, together():
        try:
            while waiting or futures:
                while waiting and len(futures) < workers:
                    number, call = waiting.pop(0)
                    futures[runner.submit(task, dict(call))] = number
                done = next(as_completed(list(futures)))
                results[futures.pop(done)] = done.result()
        except Exception:
            if futures:
                say("a task failed; no further one starts, and those that run go on to their ends")
                wait(list(futures))
            raise
    return [results[number] for number in range(len(calls))]
