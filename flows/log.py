"""What the flow says while it runs: to the console, and to Prefect's log of the run."""

from __future__ import annotations


def say(line: str) -> None:
    """One line, for the one who waits and for the run's page."""
    from prefect.exceptions import MissingContextError
    from prefect.logging import get_run_logger

    print(line, flush=True)
    try:
        get_run_logger().info(line)
    except MissingContextError:  # called outside of a run, as in tests
        return


def relay(line: str) -> None:
    """A line of a training process; what it tells a user of the command line about its next steps is left out."""
    if not line.startswith(("wrote ", "next: ")):
        say(line)
