"""An experiment's evaluations come back from MLflow with their samples, phases, arms and seeds."""

from __future__ import annotations

import pytest

from refine.errors import ServiceError
from refine.evaluation.answers import Answer
from refine.evaluation.record import Evaluation, TaskScore
from refine.reports.evaluations import find_evaluations
from refine.tracking.run import open_run


@pytest.fixture
def record(client, experiment, tmp_path):
    """record(phase, arm, score, ...): a training run and the run that evaluated its model, as the flow records them."""

    def record(phase: str, arm: str, score: float, seed: int = 1, scored_on: str = "x", finish: bool = True) -> None:
        tags = {"arm": arm, "identity.seed": seed}
        with open_run(client, experiment, arm, tags={**tags, "phase": phase}) as run:
            trained = run.run_id
        task = TaskScore.of("factsqa", 64, [score], [Answer("", 1, 9, 0, -1.0)])
        path = Evaluation(arm, {}, (task,), (), 1.0, {"scored_on": scored_on}).save(tmp_path)
        tags |= {"phase": "test_time" if phase == "test_time" else "evaluation", "refine.trained_by": trained}
        run = open_run(client, experiment, f"evaluation {arm}", tags=tags)
        client.log_artifact(run.run_id, str(path))
        if finish:
            run.end("FINISHED")

    return record


def test_evaluations_carry_the_phase_that_trained_the_model_and_their_samples(client, record):
    record("mid", "sft", 0.25)
    record("mid", "refine", 0.5)
    record("test_time", "refine", 1.0)
    found = find_evaluations(client, "sample")
    assert [(one.phase, one.arm, one.seed) for one in found] == [
        ("mid", "sft", 1),
        ("mid", "refine", 1),
        ("test_time", "refine", 1),
    ]
    assert [one.evaluation.tasks[0].scores for one in found] == [(0.25,), (0.5,), (1.0,)]


def test_unfinished_evaluations_and_those_of_earlier_prompts_are_left_out(client, record):
    record("mid", "none", 0.1, scored_on="earlier prompts")
    record("mid", "sft", 0.2)
    record("mid", "refine", 0.9, finish=False)
    record("mid", "sft", 0.3, seed=2, scored_on="the prompts of seed 2")
    assert [(one.arm, one.seed) for one in find_evaluations(client, "sample")] == [("sft", 1), ("sft", 2)]


def test_test_time_is_scored_on_fewer_prompts_and_leaves_no_other_phase_out(client, record):
    record("mid", "sft", 0.1, scored_on="earlier prompts")
    record("test_time", "sft", 0.1, scored_on="earlier questions")
    record("post", "sft", 0.2, scored_on="everything")
    record("test_time", "refine", 0.3, scored_on="questions")
    found = [(one.phase, one.arm) for one in find_evaluations(client, "sample")]
    assert found == [("post", "sft"), ("test_time", "refine")]


def test_an_experiment_that_is_not_there_or_empty_is_refused_by_name(client, experiment):
    with pytest.raises(ServiceError, match=r"no experiment 'smaple' \(did you mean 'sample'\?\)"):
        find_evaluations(client, "smaple")
    with pytest.raises(ServiceError, match="holds no finished evaluation"):
        find_evaluations(client, "sample")
