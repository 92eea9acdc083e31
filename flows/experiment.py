"""A running experiment: its settings and stages, and its place in MLflow."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refine import paths
from refine.errors import without_secrets
from refine.identity import Identity, flat, identify
from refine.phases.prepared_data import Prepared
from refine.phases.stages import Stage, Stages
from refine.settings import Settings
from refine.settings.arms import NOT_OF_AN_ARM
from refine.system.liveness import owner
from refine.tracking.tags import FLOW_RUN_ID, FLOW_RUN_NAME, IN_RECORD, PREFECT_URL

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Experiment:
    """name: of MLflow's experiment. parent: id of the MLflow run that holds all other runs."""

    name: str
    stages: Stages
    identity: Identity
    client: MlflowClient
    experiment_id: str
    parent: str

    @property
    def settings(self) -> Settings:
        """The validated settings."""
        return self.stages.settings

    def tags(self, phase: str, arm: str = "") -> dict[str, str]:
        """Tags of a run or version: identity, phase, arm, and its Prefect run."""
        belongs = {"experiment": self.name, "phase": phase, **({"arm": arm} if arm else {})}
        return {**belongs, **self.identity.tags(), **prefect_tags()}

    def run_tags(self, phase: str, arm: str = "") -> dict[str, str]:
        """`tags` that a person reads on a run's page; `record` has the others."""
        return {name: value for name, value in self.tags(phase, arm).items() if name not in IN_RECORD}

    def record(self, **more: Any) -> dict[str, Any]:
        """What else there is to know of a run: identity, Prefect's run, machine, and `more`."""
        return {"identity": asdict(self.identity), "prefect": prefect_tags(), "machine": owner(), **more}

    def settings_of(self, stage: Stage) -> dict[str, Any]:
        """The settings that a stage uses, with dotted names, as MLflow's parameters."""
        values = self.settings.model_dump(mode="json")
        if stage.phase == "start":
            chosen = {"model": values["model"], "training": values["training"]["start"]}
        else:
            section = getattr(self.settings.training, stage.phase)
            phase = section.model_dump(mode="json", exclude=NOT_OF_AN_ARM)
            chosen = {"model": values["model"], "training": phase, "arm": stage.arm}
            if (objective := section.objective_of(stage.arm)).uses_positions:
                chosen["objective"] = objective.model_dump(mode="json")
        return flat({**chosen, "seed": values["seed"], "sequence_length": values["documents"]["sequence_length"]})


def open_experiment(settings: Settings, name: str | None, client: MlflowClient, parent: str = "") -> Experiment:
    """The experiment called `name` (default: registry.model_name), recorded through `client`."""
    from refine.tracking.connection import experiment_id

    name = name or settings.registry.model_name
    stages = Stages(settings, Prepared(paths.prepared()))
    return Experiment(name, stages, identify(settings), client, experiment_id(client, name), parent)


def results_folder(run_id: str) -> Path:
    """The folder for the results of the experiment with this MLflow run: results/, or a separate folder for a deployed
    run, because several deployed runs can share a checkout."""
    from prefect.runtime import deployment

    return paths.runs() / "results" / run_id if deployment.id else paths.results()


def prefect_tags() -> dict[str, str]:
    """Tags with the current Prefect run, and with its page if a lasting server shows it."""
    from prefect.runtime import flow_run

    run_id = flow_run.id
    if not run_id:
        return {}
    tags = {FLOW_RUN_ID: str(run_id), FLOW_RUN_NAME: str(flow_run.name)}
    url = without_secrets(os.environ.get("PREFECT_API_URL", ""))
    if url and not os.environ.get("REFINE_TEMPORARY_PREFECT"):
        tags[PREFECT_URL] = f"{url.removesuffix('/').removesuffix('/api')}/runs/flow-run/{run_id}"
    return tags
