"""A flow stops when its worker's services stop. It labels its Prefect run with its process, so that the janitor can
tell that a flow was killed: a killed flow cannot report that itself."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from uuid import UUID

from refine.system.liveness import ALIVE, BEAT, OWNER, owner
from refine.system.processes import die_with_parent


def start_heartbeat() -> None:
    """Called first in a flow. Ties the flow to the worker of `refine up` that started it, if there is one. Labels its
    Prefect run with this process now, and with a new sign of life every BEAT seconds."""
    from prefect.runtime import flow_run

    die_with_parent(at_once=False)  # the kernel would take the worker's thread for the parent
    if flow_run.id:
        run_id = UUID(str(flow_run.id))
        _label(run_id)
        threading.Thread(target=_beat, args=(run_id,), name="alive", daemon=True).start()


def _beat(run_id: UUID) -> None:
    """Signs of life until the run has ended. A server that does not answer gets the next one."""
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
