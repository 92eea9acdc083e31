"""Ends runs whose process has died: `python -m refine.services.janitor`, one of the programs of `refine up`.

A killed process cannot end its MLflow run and its Prefect run. Every few seconds the janitor looks for runs whose
process is gone (on this machine) or silent for 90 s (on others). It sets MLflow's runs to KILLED and Prefect's to
Crashed, so that Prefect's own retry can start.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from refine.errors import ServiceError, reason
from refine.services.prefect_api import VARIABLE, chosen, wait_until_ready
from refine.services.work_pools import PROCESSES
from refine.system.liveness import OWNER, alive
from refine.system.one_line_errors import one_line_errors
from refine.tracking.tags import FLOW_RUN_ID

EVERY = 15.0  # seconds between rounds
TAG = "refine"  # of our deployments' runs; the janitor leaves other runs alone
# Seconds in a state after which a run counts as dead. Running: no living process has labelled it (a retried run keeps
# the former process's label for a moment). Pending: no process has started.
GRACE: dict[str, float] = {"RUNNING": 45.0, "CANCELLING": 45.0, "PENDING": 180.0}
RUNNING = ("RUNNING", "CANCELLING")
START = 5.0  # seconds within which a flow that starts labels its run
UNFINISHED = ("PENDING", "RUNNING", "CANCELLING", "SCHEDULED")  # states of the tasks that end with their flow
LATE = 30.0  # seconds after a flow's end in which Prefect may still record the states of its tasks


def main() -> None:
    """Look for dead runs until this process is ended. After an error, the next round tries again.

    Raises SettingError, ServiceError: no Prefect server is named.
    """
    api = chosen()
    if api is None:
        raise ServiceError(f"no Prefect server runs: set {VARIABLE} to yours")
    os.environ.update(api.variables())
    wait_until_ready(api.url, patience=600)
    while True:
        for end_dead in (end_dead_mlflow_runs, end_dead_flow_runs, end_tasks_of_ended_flows):
            try:
                for line in end_dead():
                    print(line, flush=True)
            except Exception as error:
                print(f"{type(error).__name__}: {reason(error)}", flush=True)
        time.sleep(EVERY)


def end_dead_mlflow_runs() -> list[str]:
    """End the dead runs of MLflow and the Prefect runs that they belong to. Returns a line for each."""
    from refine.tracking.connection import connect
    from refine.tracking.run import end_dead_runs

    client = connect()
    lines = []
    for run_id in end_dead_runs(client):
        lines.append(f"MLflow run {run_id} ended: its process is gone")
        flow_run = client.get_run(run_id).data.tags.get(FLOW_RUN_ID)
        if flow_run and crash(flow_run):
            lines.append(f"Prefect run {flow_run} crashed: its process is gone")
    return lines


def end_dead_flow_runs() -> list[str]:
    """End dead Prefect runs that `end_dead_mlflow_runs` cannot find: sweeps, runs that died while they started or
    prepared data, and runs whose MLflow run somebody else (`refine status`, the next flow) has ended already."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType

    types = [StateType(name) for name in GRACE]
    unfinished = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=types)))
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(flow_run_filter=unfinished, limit=200)
        kinds = {pool.name: pool.type for pool in client.read_work_pools()}
    dead = [one for one in found if is_dead(one, kinds.get(one.work_pool_name or ""))]
    return [f"Prefect run {one.id} crashed: its process is gone" for one in dead if crash(str(one.id), tuple(GRACE))]


def end_tasks_of_ended_flows(now: float | None = None) -> list[str]:
    """End the tasks of our flows that have ended without them. A worker that sees its flow die sets the flow's state,
    and leaves its tasks Running."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas import filters
    from prefect.client.schemas.objects import TERMINAL_STATES, StateType

    unfinished = filters.TaskRunFilterStateType(any_=[StateType(name) for name in UNFINISHED])
    ended = filters.FlowRunFilterStateType(any_=list(TERMINAL_STATES))
    with get_client(sync_client=True) as client:
        found = client.read_task_runs(
            flow_run_filter=filters.FlowRunFilter(state=filters.FlowRunFilterState(type=ended)),
            task_run_filter=filters.TaskRunFilter(state=filters.TaskRunFilterState(type=unfinished)),
            limit=200,
        )
        flows = [client.read_flow_run(one) for one in {task.flow_run_id for task in found} if one is not None]
    left = [one for one in flows if is_ours(one) and _seconds_in_state(one, now) > LATE]
    return [f"Prefect run {one.id} has ended: so have its tasks" for one in left if crash(str(one.id), ())]


def is_ours(flow_run: Any) -> bool:
    """Whether one of our flows has labelled the run, or one of our deployments has made it."""
    return OWNER in (flow_run.labels or {}) or TAG in flow_run.tags


def is_dead(flow_run: Any, pool_type: str | None, now: float | None = None) -> bool:
    """Whether a Prefect run of ours has been in its state for long without a process. pool_type: the type of its work
    pool. In a pool of containers a run may stay Pending for any time."""
    kind = flow_run.state.type.value
    seconds = _seconds_in_state(flow_run, now)
    labels = flow_run.labels or {}
    if kind not in GRACE or seconds < GRACE[kind]:
        return False
    if kind == "PENDING":
        return TAG in flow_run.tags and pool_type == PROCESSES
    return not alive(labels, now) if OWNER in labels else TAG in flow_run.tags and pool_type == PROCESSES


def crash(flow_run: str, states: Sequence[str] = RUNNING, start: float = START) -> bool:
    """Set a flow run that is in one of `states`, and its unfinished task runs, to Crashed, unless a living process owns
    it or may have begun it in the last `start` seconds. Returns whether anything was set. (A worker that sees its flow
    die reports the flow, but not its tasks.)"""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Crashed

    with get_client(sync_client=True) as client:
        try:
            found = client.read_flow_run(UUID(flow_run))
        except ObjectNotFound:  # recorded by another server
            return False
        if _has_process(found, start=start):
            return False
        state: Any = Crashed(message="its process is gone")
        chosen = FlowRunFilter(id=FlowRunFilterId(any_=[found.id]))
        dead = [one for one in client.read_task_runs(flow_run_filter=chosen) if _is_in(UNFINISHED, one)]
        for task_run in dead:
            client.set_task_run_state(task_run.id, state, force=True)
        if _is_in(states, found):
            client.set_flow_run_state(found.id, state, force=True)
    return bool(dead) or _is_in(states, found)


def _has_process(flow_run: Any, now: float | None = None, start: float = START) -> bool:
    """Whether a living process owns the run, or a process that has just started may be about to label it."""
    just_now = _seconds_in_state(flow_run, now) < start
    return (OWNER in flow_run.labels and alive(flow_run.labels, now)) or (just_now and _is_in(RUNNING, flow_run))


def _seconds_in_state(flow_run: Any, now: float | None = None) -> float:
    return float((now or time.time()) - flow_run.state.timestamp.timestamp())


def _is_in(states: Sequence[str], run: Any) -> bool:
    return run.state is not None and run.state.type.value in states


if __name__ == "__main__":
    with one_line_errors():
        main()
