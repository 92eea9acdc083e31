"""A run in MLflow: opened, or resumed by its key; its status says how it ended, also after the death of its process.

A run names its owner (machine, process) and carries a sign of life. `end_dead_runs` ends runs whose owner has died.
"""

from __future__ import annotations

import getpass
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from refine.errors import reason
from refine.identity import flat
from refine.system.liveness import ALIVE, BEAT, OWNER, alive, owner
from refine.tracking import outbox
from refine.tracking.sender import Sender
from refine.tracking.tags import ERROR, KEY, RECORD, USER

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

log = logging.getLogger(__name__)
PARAMETER = 6000  # characters of a parameter's value: MLflow's limit


class Run:
    """A run as a context manager: FINISHED at the end, FAILED by an exception, KILLED by an interrupt.

    If MLflow does not answer at the end, the status is kept in the outbox, and the next `connect` delivers it.
    """

    def __init__(self, client: MlflowClient, run_id: str, experiment_id: str) -> None:
        self.client, self.run_id, self.experiment_id = client, run_id, experiment_id
        self.closing: list[Callable[[], None]] = []  # called before the run ends
        self._ended = threading.Event()
        self._pulse = threading.Thread(target=self._beat, name="alive", daemon=True)

    def __enter__(self) -> Run:
        self._pulse.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._ended.set()
        for close in self.closing:
            close()
        self._pulse.join()
        status = "FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED"
        try:
            if kind is not None:
                self.tag({ERROR: f"{kind.__name__}: {error}"[:5000]})
            self.end(status)
        except Exception as trouble:  # raised here, it would hide the error of the work
            file = outbox.keep(self.run_id, status=status)
            text = "MLflow does not answer (%s): the status %s of run %s is kept in %s until the next connection"
            log.warning(text, reason(trouble), status, self.run_id, file)

    def end(self, status: str) -> None:
        """Set the final status: FINISHED, FAILED or KILLED."""
        self.client.set_terminated(self.run_id, status)

    def tag(self, tags: Mapping[str, Any]) -> None:
        """Set tags."""
        from mlflow.entities import RunTag

        self.client.log_batch(self.run_id, tags=[RunTag(name, str(value)) for name, value in tags.items()])

    def metrics(self, values: Mapping[str, Any], step: int = 0) -> None:
        """Log one row of metrics. Values that are not finite are left out and counted."""
        Sender(self.client, self.run_id).send([(step, values)])

    def record(self, values: Mapping[str, Any]) -> None:
        """Keep `values` (plain data) as the artifact RECORD: all that nobody reads first."""
        self.client.log_dict(self.run_id, json.loads(json.dumps(values, default=str)), RECORD)

    def _beat(self) -> None:
        missed = False
        while not self._ended.wait(BEAT):
            try:
                self.client.set_tag(self.run_id, ALIVE, str(int(time.time())))
                if missed and self.client.get_run(self.run_id).info.status != "RUNNING":
                    self.client.update_run(self.run_id, status="RUNNING")  # `end_dead_runs` took it for dead
                    self.client.delete_tag(self.run_id, ERROR)
                missed = False
            except Exception:  # the server does not answer; the next beat tries again
                missed = True


def open_run(
    client: MlflowClient,
    experiment_id: str,
    name: str,
    *,
    key: str | None = None,
    parent: str | None = None,
    tags: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
) -> Run:
    """A new run called `name`. If a run with this `key` began and did not finish, that run is resumed instead.

    parent: id of the run to nest it in. params: settings; nested mappings become dotted names.
    """
    marks = {**(tags or {}), OWNER: json.dumps(owner()), ALIVE: str(int(time.time()))}
    marks = {"mlflow.source.name": "refine", "mlflow.source.type": "JOB", USER: _user(), **marks}
    if key is not None:
        marks[KEY] = key
    if parent is not None:
        marks["mlflow.parentRunId"] = parent
    known = _unfinished(client, experiment_id, key) if key else None
    if known is None:
        run_id = client.create_run(experiment_id, tags={n: str(v) for n, v in marks.items()}, run_name=name).info.run_id
        run = Run(client, run_id, experiment_id)
    else:
        run = Run(client, known.info.run_id, experiment_id)
        run.tag(marks)  # before the status: a RUNNING run that names its former owner counts as dead
        client.update_run(run.run_id, status="RUNNING")
    _log_params(client, run.run_id, params or {})
    return run


def find_run(client: MlflowClient, experiment_id: str, key: str) -> MlflowRun | None:
    """The newest finished run with this key, or None."""
    found = client.search_runs(
        [experiment_id], f"tags.`{KEY}` = '{key}' and attributes.status = 'FINISHED'", max_results=1
    )
    return found[0] if found else None


def end_dead_runs(client: MlflowClient, experiment_ids: list[str] | None = None) -> list[str]:
    """End, as KILLED, our runs that are RUNNING and whose owner has died. Returns their ids.

    A run of this machine is dead if its process is, a run of another machine after 90 s without a sign of life.
    """
    if experiment_ids is None:
        experiment_ids = [experiment.experiment_id for experiment in client.search_experiments()]
    if not experiment_ids:
        return []
    ended = []
    for run in client.search_runs(experiment_ids, "attributes.status = 'RUNNING'", max_results=1000):
        if _dead(run) and _dead(client.get_run(run.info.run_id)):  # again: it may have been resumed since the search
            client.set_tag(run.info.run_id, ERROR, "its process is gone")
            client.set_terminated(run.info.run_id, "KILLED")
            ended.append(run.info.run_id)
    return ended


def _user() -> str:
    """The name of the account that this process has; a container may have none."""
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):
        return "unknown"


def _dead(run: MlflowRun) -> bool:
    return run.info.status == "RUNNING" and OWNER in run.data.tags and not alive(run.data.tags)


def _unfinished(client: MlflowClient, experiment_id: str, key: str) -> MlflowRun | None:
    found = client.search_runs([experiment_id], f"tags.`{KEY}` = '{key}'", max_results=50)
    open_ones = [run for run in found if run.info.status != "FINISHED"]
    return open_ones[0] if open_ones else None


def _log_params(client: MlflowClient, run_id: str, params: Mapping[str, Any]) -> None:
    """Log the parameters that the run does not have yet. MLflow refuses to change the value of one it has."""
    from mlflow.entities import Param

    known = client.get_run(run_id).data.params
    new = [Param(name, str(value)[:PARAMETER]) for name, value in flat(params).items() if name not in known]
    for first in range(0, len(new), 100):
        client.log_batch(run_id, params=new[first : first + 100])
