"""An experiment's evaluations, with every sample's score: from MLflow, or from a folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refine.errors import DataError, ServiceError, nearest
from refine.evaluation.record import EVALUATION_FILE, Evaluated, Evaluation
from refine.system.leftovers import temporary_folder
from refine.system.quiet import no_download_bars
from refine.tracking.tags import ARM, PHASE, SEED, TRAINED_BY

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

TEST_TIME = "test_time"  # a phase


def find_evaluations(client: MlflowClient, experiment: str) -> list[Evaluated]:
    """The finished evaluations of `experiment`, oldest first.

    For each seed only those that were scored on the same inputs as its newest one. Test-time evaluations count apart,
    since they score only the questions. Raises ServiceError if there is no such experiment, or no evaluation in it.
    """
    found = client.get_experiment_by_name(experiment)
    if found is None:
        known = [one.name for one in client.search_experiments()]
        raise ServiceError(
            f"MLflow has no experiment {experiment!r}{nearest(experiment, known)}; there are: {', '.join(known)}"
        )
    runs = _finished(client, found.experiment_id)
    recorded = [(run.data.tags[TRAINED_BY], _evaluated(client, run)) for run in runs]
    evaluated = [*_as_they_are(recorded), *(one for _, one in recorded)]
    if not evaluated:
        raise ServiceError(f"experiment {experiment!r} holds no finished evaluation; `make run` records some")
    newest = {_kind(one): one.evaluation.settings.get("scored_on") for one in evaluated}
    return [one for one in evaluated if one.evaluation.settings.get("scored_on") == newest[_kind(one)]]


def _as_they_are(recorded: list[tuple[str, Evaluated]]) -> list[Evaluated]:
    """For the test-time evaluations of a trained model, the same model as it is: arm `none` of test time. It was scored
    on the same prompts and more, so it takes the hash of the test-time evaluation."""
    plain = {trained_by: one for trained_by, one in recorded if one.phase != TEST_TIME}
    found = []
    for trained_by, one in recorded:
        base = plain.get(trained_by)
        if one.phase == TEST_TIME and base is not None:
            tasks = {(task.task, task.length, len(task.scores)) for task in one.evaluation.tasks}
            kept = tuple(task for task in base.evaluation.tasks if (task.task, task.length, len(task.scores)) in tasks)
            alike = replace(base.evaluation, next_token={}, tasks=kept, settings=one.evaluation.settings)
            found.append(Evaluated(TEST_TIME, "none", one.seed, alike))
    return found


def _kind(one: Evaluated) -> tuple[int, bool]:
    return one.seed, one.phase == TEST_TIME


def _finished(client: MlflowClient, experiment_id: str) -> list[MlflowRun]:
    """Finished runs of evaluations, oldest first."""
    runs: list[MlflowRun] = []
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment_id],
            "attributes.status = 'FINISHED'",
            max_results=500,
            page_token=token,
            order_by=["attributes.start_time ASC"],
        )
        runs += [run for run in page if TRAINED_BY in run.data.tags]
        token = page.token
        if not token:
            return runs


def _evaluated(client: MlflowClient, run: MlflowRun) -> Evaluated:
    tags: dict[str, Any] = run.data.tags
    phase = tags.get(PHASE, "")
    if phase == "evaluation":  # of a trained model as it is; its phase is that of its training run
        phase = client.get_run(tags[TRAINED_BY]).data.tags.get(PHASE, phase)
    with temporary_folder("evaluations") as folder, no_download_bars():
        evaluation = Evaluation.load(client.download_artifacts(run.info.run_id, EVALUATION_FILE, str(folder)))
    return Evaluated(phase, tags.get(ARM, ""), int(tags.get(SEED, 0)), evaluation)


def evaluation_of(client: MlflowClient, run_id: str) -> Evaluation | None:
    """The evaluation that a run recorded, with every sample's score; None if the run or its file is gone."""
    from mlflow.exceptions import MlflowException

    if not run_id:
        return None
    with temporary_folder("evaluations") as folder, no_download_bars():
        try:
            return Evaluation.load(client.download_artifacts(run_id, EVALUATION_FILE, str(folder)))
        except (MlflowException, OSError):
            return None


def find_in_folder(folder: str | Path, phase: str = "mid") -> list[Evaluated]:
    """FOLDER/ARM/SEED/evaluation.json of every arm (any name) and seed (a number), as evaluations of `phase`.

    Raises DataError if there is none, or if a file is no evaluation.
    """
    found = [
        Evaluated(phase, path.parent.parent.name, int(path.parent.name), Evaluation.load(path))
        for path in sorted(Path(folder).glob(f"*/*/{EVALUATION_FILE}"))
        if path.parent.name.isdigit()
    ]
    if not found:
        raise DataError(
            f"{folder}: no ARM/SEED/{EVALUATION_FILE} in it; `refine evaluate --output FOLDER/ARM/SEED` writes one"
        )
    return found
