"""Run tasks side by side: as many as there are devices, each in a thread that waits for its process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from prefect.futures import PrefectFuture, as_completed, wait
from prefect.task_runners import ThreadPoolTaskRunner

from flows.progress import say
from refine.system.devices import devices
from refine.system.together import together


@dataclass(eq=False)
class Call:
    """`task(**arguments)`, which takes `size` devices. then: called with the result. result: set at its end."""

    task: Any
    arguments: Mapping[str, Any]
    size: int
    then: Callable[[Any], None] | None = None
    result: Any = None


class Crew:
    """Runs calls of tasks on the devices of this machine, for the block that it opens.

    `run` runs calls now, `later` notes calls for devices that would be idle. After an error no further call starts.
    Those that run come to their ends, since a later run goes on from what they made; then the error is raised. An
    interrupt ends their processes.
    """

    def __init__(self) -> None:
        self.devices = len(devices())
        self._runner = ThreadPoolTaskRunner[Any](max_workers=self.devices)
        self._running: dict[PrefectFuture[Any], Call] = {}
        self._later: list[Call] = []
        self._block = ExitStack()

    def __enter__(self) -> Crew:
        self._block.enter_context(self._runner)
        self._block.enter_context(together())
        return self

    def __exit__(self, *error: Any) -> None:
        self._block.__exit__(*error)

    def at_once(self, processes: int = 1) -> int:
        """How many calls of `processes` processes each fit on this machine's devices, at least one."""
        return self.devices // min(processes, self.devices)

    def run(
        self,
        task: Any,
        calls: Sequence[Mapping[str, Any]],
        processes: int = 1,
        then: Callable[[Any], None] | None = None,
    ) -> list[Any]:
        """The results of `task(**call)` for all calls, in their order. Each takes `processes` devices, or all if there
        are fewer. then: called with each result as soon as it is there."""
        made = [Call(task, call, min(processes, self.devices), then) for call in calls]
        self._finish(made)
        return [call.result for call in made]

    def later(self, task: Any, call: Mapping[str, Any]) -> Call:
        """Note a call that runs when `run` leaves a device idle, or in `finish`."""
        self._later.append(noted := Call(task, call, 1))
        return noted

    def finish(self) -> None:
        """Run all noted calls to their ends."""
        self._finish([*self._running.values(), *self._later])

    def _finish(self, made: Sequence[Call]) -> None:
        waiting = [call for call in made if call not in self._running.values() and call not in self._later]
        missing = list(made)
        try:
            while missing:
                self._start(waiting)
                future = next(as_completed(list(self._running)))
                done = self._running.pop(future)
                done.result = future.result()
                if done in missing:
                    missing.remove(done)
                if done.then is not None:
                    done.then(done.result)
        except Exception:
            if self._running:
                say("a task failed; no further one starts, and those that run go on to their ends")
                wait(list(self._running))
            raise

    def _start(self, waiting: list[Call]) -> None:
        """Start calls of `waiting`, then noted ones, as far as there are devices."""
        for calls in (waiting, self._later):
            while calls and calls[0].size <= self.devices - sum(call.size for call in self._running.values()):
                call = calls.pop(0)
                self._running[self._runner.submit(call.task, dict(call.arguments))] = call
            if calls:
                return  # those that wait get the next free device
