"""Prefect's runs that depend on the services of `refine up`: which are in progress, and the end of those whose worker
`refine down` has stopped. Afterwards no server is there to record it."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil

from refine.services import prefect_secret
from refine.services.janitor import GRACE, START, TAG, crash
from refine.services.prefect_api import Api, using
from refine.system.liveness import OWNER, alive


@dataclass(frozen=True)
class FlowRun:
    """A Prefect run that has not ended. state: as Prefect's page names it. ends: whether it ends with the worker;
    otherwise a living process of another worker or terminal goes on with it."""

    id: str
    name: str
    state: str
    ends: bool


def in_progress(services: Mapping[str, str], worker: int | None) -> list[FlowRun]:
    """The runs in progress on the server of `services` (what `refine up` recorded).

    worker: process id of the worker of `refine up`; None once it has stopped. Raises what Prefect's client raises.
    """
    with using(_api(services)):
        return [
            FlowRun(str(one.id), one.name, one.state.name, _ends(one, services, worker))
            for one in _unfinished()
            if one.labels.get(OWNER) or _waits_for(one, services)
        ]


def end_runs(services: Mapping[str, str]) -> list[str]:
    """Set the runs whose process is gone, and their tasks, to Crashed. The worker of `services` has stopped. Returns
    the names of the runs. Raises what Prefect's client raises."""
    with using(_api(services)):
        dead = [one for one in _unfinished() if _ends(one, services, None)]
        start = 0.0 if dead and _only_worker(services) else START
        return [one.name for one in dead if crash(str(one.id), tuple(GRACE), start)]


def _api(services: Mapping[str, str]) -> Api:
    return Api(services["prefect_api"], prefect_secret.kept() or "", True)


def _unfinished() -> list[Any]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType

    types = FlowRunFilterStateType(any_=[StateType(name) for name in GRACE])
    with get_client(sync_client=True) as client:
        return list(client.read_flow_runs(flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=types))))


def _ends(flow_run: Any, services: Mapping[str, str], worker: int | None) -> bool:
    """Whether the run ends with the worker (process id `worker`), or has ended with it (None)."""
    labels = flow_run.labels or {}
    if OWNER not in labels:
        return _waits_for(flow_run, services) and _only_worker(services)
    return not alive(labels) if worker is None or not alive(labels) else _is_below(worker, labels)


def _is_below(worker: int, labels: Mapping[str, Any]) -> bool:
    """Whether the process that labelled the run was started by the process `worker` of this machine."""
    process = json.loads(labels[OWNER])
    if process["host"] != socket.gethostname():
        return False
    try:
        return worker in [one.pid for one in psutil.Process(process["pid"]).parents()]
    except psutil.Error:
        return False


def _waits_for(flow_run: Any, services: Mapping[str, str]) -> bool:
    """Whether a worker of the pool has taken the run, which no process has labelled yet."""
    return TAG in flow_run.tags and flow_run.work_pool_name == services.get("pool")


def _only_worker(services: Mapping[str, str]) -> bool:
    """Whether the worker of `services` is the only one of its pool, so that the pool's unlabelled runs are its runs."""
    from prefect.client.orchestration import get_client

    pool = services.get("pool", "")
    with get_client(sync_client=True) as client:
        online = [one.name for one in client.read_workers_for_work_pool(pool) if str(one.status.value) == "ONLINE"]
    return set(online) <= {f"{socket.gethostname()}-{pool}"}
