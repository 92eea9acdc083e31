"""What a run shows: messages on the console and in Prefect's log, and a training's progress on its page."""

from __future__ import annotations

import contextlib
import time
from datetime import timedelta
from typing import Any
from uuid import UUID

EVERY = 5.0  # seconds between updates


def say(line: str) -> None:
    """Print one line and log it on the run's page."""
    from prefect.exceptions import MissingContextError
    from prefect.logging import get_run_logger

    print(line, flush=True)
    try:
        get_run_logger().info(line)
    except MissingContextError:  # outside a run, as in tests
        return


def relay(line: str, title: str) -> None:
    """Pass on a line of the training `title`, except its hints for users of the command line. Several trainings may run
    at once, so each line begins with its title."""
    if not line.startswith(("wrote ", "next: ")):
        say(line if line.startswith(title) else f"{title}: {line}")


class ProgressArtifact:
    """A progress artifact of the Prefect task that opens this context. Outside a task it does nothing.

    If the server does not accept an update, that update is lost; the training goes on.
    """

    def __init__(self, title: str, steps: int) -> None:
        self.title, self.steps = title, steps
        self.artifact: UUID | None = None
        self.started = self.updated = time.monotonic()
        self.first: int | None = None
        self.values: dict[str, Any] = {}

    def __enter__(self) -> ProgressArtifact:
        from prefect.artifacts import create_progress_artifact
        from prefect.context import TaskRunContext

        if self.steps and TaskRunContext.get() is not None:
            with contextlib.suppress(Exception):
                found = create_progress_artifact(0.0, description=f"{self.title}: starting")
                self.artifact = found if isinstance(found, UUID) else None
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None and self.artifact is not None:
            self._update(100.0)

    def show(self, rows: list[tuple[int, dict[str, Any]]]) -> None:
        """Show new (step, metrics) rows. The thread that relays them calls this."""
        for _, values in rows:
            self.values.update(values)
        step = rows[-1][0]
        self.first = step if self.first is None else self.first
        if self.artifact is not None and time.monotonic() - self.updated >= EVERY:
            self.updated = time.monotonic()
            self._update(100.0 * step / self.steps, step)

    def _update(self, percent: float, step: int | None = None) -> None:
        from prefect.artifacts import update_progress_artifact

        assert self.artifact is not None
        with contextlib.suppress(Exception):
            update_progress_artifact(self.artifact, min(percent, 100.0), description=self._text(step or self.steps))

    def _text(self, step: int) -> str:
        parts = [f"{self.title}: step {step} of {self.steps}"]
        for name, title in (
            ("train/ntp_loss", "loss"),
            ("train/reward/cosine/mean", "cosine reward"),
            ("train/reward/binary/mean", "binary reward"),
            ("val/loss", "validation loss"),
            ("val/answer_loss", "validation loss of the answers"),
        ):
            if name in self.values:
                parts.append(f"{title} {self.values[name]:.4f}")
        if "train/tokens_per_second" in self.values:
            parts.append(f"{self.values['train/tokens_per_second']:,.0f} tokens/s")
        if self.first is not None and self.first < step < self.steps:
            remaining = (time.monotonic() - self.started) / (step - self.first) * (self.steps - step)
            parts.append(f"{timedelta(seconds=round(remaining))} left")
        return ", ".join(parts)
