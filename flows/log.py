"""The flow's messages, which go to the console and to Prefect's log of the run."""

from __future__ import annotations


def say(line: str) -> None:
    """Print one line and log it on the run's page."""
    from prefect.exceptions import MissingContextError
    from prefect.logging import get_run_logger

    print(line, flush=True)
    try:
        get_run_logger().info(line)
    except MissingContextError:  # outside a run, as in tests
        return


def relay(line: str) -> None:
    """Pass on a line of a training process, except its hints for users of the command line."""
    if not line.startswith(("wrote ", "next: ")):
        say(line)
