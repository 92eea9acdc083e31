"""Tasks record their results, resume after an interruption, and do nothing twice."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows import tasks
from flows.experiment import open_experiment
from refine.errors import DataError
from refine.phases.stages import Stage
from refine.settings import load
from refine.system.processes import ProcessFailed


@pytest.fixture
def experiment(plan, settings_with):
    """An open experiment with scripted training."""
    from refine.tracking.connection import connect
    from refine.tracking.run import open_run

    client = connect()
    settings = settings_with()
    parent = open_experiment(settings, None, client)
    with open_run(client, parent.experiment_id, "parent") as run:
        yield open_experiment(settings, None, client, run.run_id)


def test_a_killed_training_resumes_in_the_same_run_and_keeps_every_metric_once(experiment, plan, calls):
    plan({"start": ["die"]})
    stage = experiment.stages.start()
    with pytest.raises(ProcessFailed, match="SIGKILL"):
        tasks.train.fn(experiment, stage)
    (run,) = experiment.client.search_runs([experiment.experiment_id], "tags.phase = 'start'")
    assert run.info.status == "FAILED" and "SIGKILL" in run.data.tags["refine.error"]
    assert len(experiment.client.get_metric_history(run.info.run_id, "train/ntp_loss")) == 2
    done = tasks.train.fn(experiment, stage)
    assert done.run_id == run.info.run_id and not done.reused
    run = experiment.client.get_run(done.run_id)
    history = experiment.client.get_metric_history(done.run_id, "train/ntp_loss")
    assert run.info.status == "FINISHED"
    assert [(point.step, round(point.value, 1)) for point in history] == [(1, 3.9), (2, 3.8), (3, 3.7), (4, 3.6)]
    assert run.data.tags["mlflow.parentRunId"] == experiment.parent
    assert run.data.params["training.steps"] == str(experiment.settings.training.start.steps)
    assert {"identity.commit", "identity.data", "identity.params", "identity.seed"} <= set(run.data.tags)
    assert calls() == ["start", "start"]
    (checkpoint,) = run.outputs.model_outputs
    model = experiment.client.get_logged_model(checkpoint.model_id)
    assert checkpoint.step == 4 and [(metric.key, metric.step) for metric in model.metrics] == [
        ("val/loss", 4), ("val/reward/cosine/mean", 4),
    ]  # fmt: skip
    assert [file.name for file in Path(model.artifact_location.removeprefix("file://")).iterdir()] == [
        "model.safetensors"
    ]
    kept = [file.path for file in experiment.client.list_artifacts(done.run_id)]
    assert kept == ["record.json", "reward_histograms.csv"]
    record = json.loads(Path(experiment.client.download_artifacts(done.run_id, "record.json")).read_text())
    assert record["model"] == done.model and record["identity"]["code"] == experiment.identity.code
    assert {one.dataset.name for one in run.inputs.dataset_inputs} == {"documents/train", "documents/validation"}
    assert run.data.tags["mlflow.user"] and not {"refine.model", "identity.code", "identity.dirty"} & set(run.data.tags)


def test_a_finished_stage_is_not_done_again(experiment, calls):
    stage = experiment.stages.start()
    first, again = tasks.train.fn(experiment, stage), tasks.train.fn(experiment, stage)
    assert again.reused and not first.reused and again.run_id == first.run_id and again.model == first.model
    target = experiment.stages.evaluation(first)
    scores = [tasks.evaluate.fn(experiment, [target], "start") for _ in range(2)]
    assert scores[0][0].metrics == scores[1][0].metrics and scores[1][0].run_id == scores[0][0].run_id
    assert calls() == ["start", "evaluation"]


def test_a_deleted_run_is_recorded_again_without_training(experiment, calls, monkeypatch):
    stage = experiment.stages.start()
    first = tasks.train.fn(experiment, stage)
    experiment.client.delete_run(first.run_id)
    again = tasks.train.fn(experiment, stage)
    assert again.run_id != first.run_id and calls() == ["start"]
    assert len(experiment.client.get_metric_history(again.run_id, "train/ntp_loss")) == 4


def test_an_error_that_the_user_must_correct_is_not_retried(experiment, plan):
    class State:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def result(self) -> None:
            raise self.error

    plan({"start": ["user error"]})
    with pytest.raises(ProcessFailed, match=r"model\.config: no such thing") as failed:
        tasks.train.fn(experiment, experiment.stages.start())
    assert not tasks.worth_another_try(None, None, State(failed.value))
    assert not tasks.worth_another_try(None, None, State(DataError("missing")))
    assert tasks.worth_another_try(None, None, State(ProcessFailed("train", -9, [])))
    assert tasks.worth_another_try(None, None, State(ConnectionError("away")))


def test_a_version_carries_its_origin(experiment):
    model = tasks.train.fn(experiment, experiment.stages.start())
    middle = tasks.train.fn(experiment, experiment.stages.mid("refine", model.model), model.model)
    (scored,) = tasks.evaluate.fn(experiment, [experiment.stages.evaluation(middle)], "refine")
    version = tasks.register.fn(experiment, scored)
    assert version.metrics["val/loss"] == 3.6 and version.metrics["val/reward/cosine/mean"] == 0.3
    assert version.settings["objective.rollout_length"] == 5
    assert version.settings["training.steps"] == experiment.settings.training.mid.steps
    assert version.tags["arm"] == "refine" and version.tags["val/loss"] == "3.6000"
    assert {"identity.commit", "identity.data", "identity.params", "identity.seed"} <= set(version.tags)
    curve = experiment.client.get_metric_history(middle.run_id, "val/loss")
    assert [point.step for point in curve] == [4], "the version's score went into the training's curve"
    assert tasks.register.fn(experiment, scored).number == version.number
    best = tasks.champion.fn(experiment, [version], "val/loss")
    assert best.is_champion


def test_progress_counts_the_steps_that_a_stage_takes(checkout):
    settings = load(checkout / "params.yaml")
    post = settings.training.post
    assert post is not None and post.prompt_steps > 0

    def steps(phase: str, arm: str) -> int:
        return tasks._steps(SimpleNamespace(settings=settings), Stage(phase, arm, "key", "folder"))

    assert steps("mid", "none") == 0 and steps("mid", "refine") == settings.training.mid.steps
    assert steps("post", "sft") == post.steps
    assert steps("post", "nested_sft") == steps("post", "nested_refine") == post.steps * (post.prompt_steps + 1)


@pytest.mark.parametrize(
    ("variables", "processes", "forked"),
    [
        ({}, 1, True),
        ({}, 2, False),
        ({"OMP_NUM_THREADS": "2"}, 1, False),
        ({"CUDA_VISIBLE_DEVICES": "0", "REFINE_DEVICES": ""}, 1, False),
    ],
)
def test_forks_have_one_thread_and_no_gpu(variables, processes, forked, workplace, monkeypatch):
    monkeypatch.setattr("refine.system.devices._gpus", lambda: 1 if variables.get("CUDA_VISIBLE_DEVICES") else 0)
    for name, value in {"OMP_NUM_THREADS": "1", **variables}.items():
        monkeypatch.setenv(name, value)
    assert (tasks.forks(processes) is not None) is forked
