"""A flow that a worker started ends when that worker's services do."""

from __future__ import annotations


def end_with_worker() -> None:
    """Called at the beginning of a flow: a worker of `refine up` names itself in the environment of what it starts.
    Without effect elsewhere."""
    from refine.training.process import die_with_parent

    die_with_parent(at_once=False)  # the kernel would take the worker's thread for the parent
