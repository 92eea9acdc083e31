"""A flow ends when the services of the worker that started it do, and says on its Prefect run whose it is: a flow that
is killed cannot say so afterwards (the janitor looks)."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from uuid import UUID

from refine.system.liveness import ALIVE, BEAT, OWNER, owner


def end_with_worker() -> None:
    """Called at the beginning of a flow: a worker of `refine up` names itself in the environment of what it starts.
    Elsewhere the flow only says whose it is."""
    from prefect.runtime import flow_run

    from refine.system.processes import die_with_parent

    die_with_parent(at_once=False)  # the kernel would take the worker's thread for the parent
    if flow_run.id:
        run_id = UUID(str(flow_run.id))
        _label(run_id)
        threading.Thread(target=_beat, args=(run_id,), name="alive", daemon=True).start()


def _beat(run_id: UUID) -> None:
    """Signs of life until the run has ended. A server that is away gets the next one."""
    from prefect.client.orchestration import get_client

    while True:
        time.sleep(BEAT)
        with contextlib.suppress(Exception):
            with get_client(sync_client=True) as client:
                state = client.read_flow_run(run_id).state
            if state is not None and state.is_final():
                return
            _label(run_id)


def _label(run_id: UUID) -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(run_id, {OWNER: json.dumps(owner()), ALIVE: int(time.time())})
