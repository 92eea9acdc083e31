"""Ends what died without a word: `python -m refine.services.janitor`, one of the programs of `refine up`.

A killed process cannot say that its MLflow run and its Prefect run are over. Every few seconds the janitor looks for
runs whose process is gone (on this machine) or silent for 90 s (on others), and ends them: MLflow's as KILLED,
Prefect's as Crashed, from where Prefect's own retry goes on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from refine.errors import reason
from refine.tracking.tags import FLOW_RUN_ID

EVERY = 15.0  # seconds between rounds
TAG = "refine"  # of our deployments' runs: those of others are none of our business
# Seconds in a state after which a run counts as dead: Running without a living process that says it is its own (a run
# that is tried again still names the former one for a moment); Pending, with no process to say anything yet.
GRACE: dict[str, float] = {"RUNNING": 45.0, "CANCELLING": 45.0, "PENDING": 180.0}
RUNNING = ("RUNNING", "CANCELLING")
START = 5.0  # seconds in which a flow that begins says whose it is


def main() -> None:
    """Look around until this process is ended. A server that is away is asked again at the next round."""
    from refine.services.prefect_api import wait_until_ready

    wait_until_ready(os.environ["PREFECT_API_URL"], patience=600)
    while True:
        for look in (round_once, end_dead_flow_runs):
            try:
                for line in look():
                    print(line, flush=True)
            except Exception as error:
                print(f"{type(error).__name__}: {reason(error)}", flush=True)
        time.sleep(EVERY)


def round_once() -> list[str]:
    """End the dead runs of MLflow, and the Prefect runs that they belong to; returns a line on each."""
    from refine.tracking.connection import connect
    from refine.tracking.run import end_dead_runs

    client = connect()
    ended = end_dead_runs(client)
    said = [f"MLflow run {run_id} ended: its process is gone" for run_id in ended]
    for run_id in ended:
        flow_run = client.get_run(run_id).data.tags.get(FLOW_RUN_ID)
        if flow_run and crash(flow_run):
            said.append(f"Prefect run {flow_run} crashed: its process is gone")
    return said


def end_dead_flow_runs() -> list[str]:
    """End Prefect runs that no MLflow run tells of: sweeps, those that died while they began or prepared data, and
    those whose MLflow run somebody else (`refine status`, the next flow) has ended already."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType

    types = [StateType(name) for name in GRACE]
    open_ones = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=types)))
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(flow_run_filter=open_ones, limit=200)
        kinds = {pool.name: pool.type for pool in client.read_work_pools()}
    dead = [one for one in found if is_dead(one, kinds.get(one.work_pool_name or ""))]
    return [f"Prefect run {one.id} crashed: its process is gone" for one in dead if crash(str(one.id), tuple(GRACE))]


def is_dead(flow_run: Any, pool_type: str | None, now: float | None = None) -> bool:
    """Whether a Prefect run of ours has been in its state for long without a process. pool_type: of the pool that it
    came from; where that makes no processes but containers, a run may be Pending for as long as it likes."""
    from refine.services.work_pools import PROCESSES
    from refine.system.liveness import OWNER, alive

    kind = flow_run.state.type.value
    seconds = (now or time.time()) - flow_run.state.timestamp.timestamp()
    labels = flow_run.labels or {}
    if kind not in GRACE or seconds < GRACE[kind]:
        return False
    if kind == "PENDING":
        return TAG in flow_run.tags and pool_type == PROCESSES
    return not alive(labels, now) if OWNER in labels else TAG in flow_run.tags and pool_type == PROCESSES


def crash(flow_run: str, states: Sequence[str] = RUNNING) -> bool:
    """Set the flow run, in one of `states`, and its task runs that count as running to Crashed, where no living process
    owns them; whether any was. (A worker that sees its flow die tells of the flow, and not of the tasks.)"""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Crashed

    with get_client(sync_client=True) as client:
        try:
            found = client.read_flow_run(UUID(flow_run))
        except ObjectNotFound:  # recorded by another server
            return False
        if _taken_up_again(found):
            return False
        state: Any = Crashed(message="its process is gone")
        chosen = FlowRunFilter(id=FlowRunFilterId(any_=[found.id]))
        dead = [one for one in client.read_task_runs(flow_run_filter=chosen) if _in(RUNNING, one)]
        for task_run in dead:
            client.set_task_run_state(task_run.id, state, force=True)
        if _in(states, found):
            client.set_flow_run_state(found.id, state, force=True)
    return bool(dead) or _in(states, found)


def _taken_up_again(flow_run: Any, now: float | None = None) -> bool:
    """Whether a living process owns it, or one that has just begun may be about to say so."""
    from refine.system.liveness import OWNER, alive

    just_now = (now or time.time()) - flow_run.state.timestamp.timestamp() < START
    return (OWNER in flow_run.labels and alive(flow_run.labels, now)) or (just_now and _in(RUNNING, flow_run))


def _in(states: Sequence[str], run: Any) -> bool:
    return run.state is not None and run.state.type.value in states


if __name__ == "__main__":
    main()
