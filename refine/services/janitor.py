"""Ends what died without a word: `python -m refine.services.janitor`, one of the programs of `refine up`.

A killed process cannot say that its MLflow run and its Prefect run are over. Every few seconds the janitor looks for
runs whose process is gone (on this machine) or silent for 90 s (on others), and ends them: MLflow's as KILLED,
Prefect's as Crashed, from where Prefect's own retry goes on.
"""

from __future__ import annotations

import os
import time
from typing import Any

EVERY = 15.0  # seconds between rounds
FLOW_RUN = "prefect.flow_run_id"  # tag of an MLflow run


def main() -> None:
    """Look around until this process is ended. A server that is away is asked again at the next round."""
    from refine.services.prefect_api import wait_until_ready

    wait_until_ready(os.environ["PREFECT_API_URL"], patience=600)
    while True:
        try:
            for line in round_once():
                print(line, flush=True)
        except Exception as error:
            print(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", flush=True)
        time.sleep(EVERY)


def round_once() -> list[str]:
    """End the dead; returns a line on each."""
    from refine.tracking.connection import connect
    from refine.tracking.run import end_dead_runs

    client = connect()
    ended = end_dead_runs(client)
    said = [f"MLflow run {run_id} ended: its process is gone" for run_id in ended]
    for run_id in ended:
        flow_run = client.get_run(run_id).data.tags.get(FLOW_RUN)
        if flow_run and crash(flow_run):
            said.append(f"Prefect run {flow_run} crashed: its process is gone")
    return said


def crash(flow_run: str) -> bool:
    """Set the flow run and its task runs to Crashed, where they still count as running; whether any did. (A worker
    that sees its flow die tells of the flow, and not of the tasks.)"""
    from uuid import UUID

    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Crashed

    with get_client(sync_client=True) as client:
        try:
            found = client.read_flow_run(UUID(flow_run))
        except ObjectNotFound:  # recorded by another server
            return False
        state: Any = Crashed(message="its process is gone")
        chosen = FlowRunFilter(id=FlowRunFilterId(any_=[found.id]))
        dead = [one for one in client.read_task_runs(flow_run_filter=chosen) if _running(one)]
        for task_run in dead:
            client.set_task_run_state(task_run.id, state, force=True)
        if _running(found):
            client.set_flow_run_state(found.id, state, force=True)
    return bool(dead) or _running(found)


def _running(run: Any) -> bool:
    return run.state is not None and not run.state.is_final() and run.state.type.value in ("RUNNING", "CANCELLING")


if __name__ == "__main__":
    main()
