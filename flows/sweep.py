"""A sweep: one experiment for each combination of settings and seeds, run by the work pool and compared at the end."""

from __future__ import annotations

import itertools
import time
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from flows.progress import say
from refine.errors import ServiceError, SettingError
from refine.settings import Settings, load
from refine.system.names import check_name

DEPLOYMENT = "refine-experiment/experiment"
EVERY = 5.0  # seconds between requests for the states of the experiments


def combinations(settings: dict[str, list[Any]], seeds: list[int]) -> list[list[str]]:
    """The overrides of each experiment: every combination of the settings' values, with every seed.

    Raises SettingError: a setting has no values, or there is no seed.
    """
    for name, values in settings.items():
        if not isinstance(values, list) or not values:
            raise SettingError(f"sweep: setting {name!r} needs a list of values, not {values!r}")
    if not seeds:
        raise SettingError("sweep: name at least one seed")
    products = itertools.product(*settings.values())
    return [
        [*(f"{name}={_yaml(value)}" for name, value in zip(settings, values, strict=True)), f"seed={seed}"]
        for values in products
        for seed in seeds
    ]


def _yaml(value: Any) -> str:
    import json

    return json.dumps(value)  # JSON is YAML


def _run_name() -> str:
    return f"sweep {flow_run.parameters.get('name')} {time.strftime('%Y-%m-%d %H:%M')}"


@flow(name="refine-sweep", flow_run_name=_run_name, persist_result=False)
def refine_sweep(
    name: str, settings: dict[str, list[Any]], seeds: list[int] | None = None, params: str = "params.yaml"
) -> dict[str, Any]:
    """Run an experiment for every combination of settings and seeds, and wait for all of them.

    Raises SettingError before any experiment starts, if one has invalid settings.

    Args:
        name: name of the sweep and of its MLflow experiment
        settings: values of each setting, as in {"training.mid.learning_rate": [1e-4, 2e-4]}
        seeds: seeds that every combination runs with; default: the seed in the settings file
        params: settings file, relative to the checkout
    """
    check_name(name, "an experiment")
    seeds = [load(params).seed] if seeds is None else seeds
    wanted = combinations(settings, seeds)
    for overrides in wanted:
        load(params, overrides)
    started = [_start(name, params, overrides) for overrides in wanted]
    say(f"{name}: {len(started)} experiments wait in the work pool")
    finished = _wait(started)
    failed = [f"{label} ({state.lower()})" for label, state in finished.items() if state != "COMPLETED"]
    if failed:
        raise ServiceError(f"{name}: {len(failed)} of {len(finished)} experiments did not finish: {'; '.join(failed)}")
    return {"experiment": name, "runs": len(finished), "versions": _compare(name, load(params))}


def _compare(name: str, settings: Settings) -> list[int]:
    """Show the sweep's versions side by side on the run's page. Returns their numbers."""
    from flows.artifacts import publish_sweep
    from refine.reports.comparison import compare
    from refine.tracking.connection import connect
    from refine.tracking.registry import versions

    client = connect()
    found = [one for one in versions(client, settings.registry.model_name) if one.experiment == name]
    publish_sweep(name, client, compare(found))
    return [one.number for one in found]


def _start(name: str, params: str, overrides: list[str]) -> tuple[str, Any]:
    """Put an experiment into the pool. Returns its label and the id of its flow run."""
    from prefect.deployments import run_deployment

    label = ", ".join(overrides)
    made: Any = run_deployment(
        DEPLOYMENT,
        parameters={"params": params, "overrides": overrides, "experiment": name, "prepare": True},
        timeout=0,
        as_subflow=False,
    )
    return label, made.id


def _wait(started: list[tuple[str, Any]]) -> dict[str, str]:
    """The final state of each run, by label. If the server does not answer, the next request repeats the question."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    finished: dict[str, str] = {}
    with get_client(sync_client=True) as client:
        while True:
            for label, run_id in started:
                if label in finished:
                    continue
                try:
                    state = client.read_flow_run(run_id).state
                except ObjectNotFound:
                    finished[label] = "DELETED"
                    continue
                except httpx.HTTPError:
                    break
                if state is not None and state.is_final():
                    finished[label] = state.type.value
                    say(f"{label}: {state.name}")
            if len(finished) == len(started):
                return finished
            time.sleep(EVERY)
