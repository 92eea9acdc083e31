"""Differences to the champion are paired sample by sample, between versions scored on the same samples."""

from __future__ import annotations

import numpy as np
import pytest

from refine.evaluation.intervals import mean_of_scores
from refine.evaluation.record import Evaluation, NextTokenScore, TaskScore
from refine.reports.differences import texts, to_champion
from refine.tracking.registry import Version

HARD = np.linspace(0.0, 5.0, 40)  # how hard each sequence is: far more than models differ


@pytest.fixture
def make(client, experiment, tmp_path):
    """A version with a recorded evaluation: make(number, gain, evaluation, champion)."""

    def make(number: int, gain: float, scored_on: str = "e1", champion: bool = False) -> Version:
        noise = np.random.default_rng(number).normal(0, 0.01, 40)
        losses = tuple(3.0 + HARD - gain + noise)
        scores = tuple(float(n % 2) for n in range(20))
        next_token = NextTokenScore(
            loss=float(np.mean(losses)),
            accuracy=0.3,
            tokens=400,
            sequences=40,
            by_position=(),
            loss_interval=None,
            accuracy_interval=None,
            sequence_losses=losses,
            sequence_tokens=(10,) * 40,
        )
        task = TaskScore(
            "niah_single_1", 256, mean_of_scores(list(scores)), mean_of_scores([-1.0] * 20), 0, scores, (-1.0,) * 20
        )
        evaluation = Evaluation(f"model {number}", {"val": next_token}, (task,), (), 1.0, {})
        run_id = client.create_run(experiment).info.run_id
        client.log_artifact(run_id, str(evaluation.save(tmp_path / str(number))))
        tags = {"refine.evaluation": scored_on, "refine.evaluation_run": run_id}
        return Version("m", number, tags, ("champion",) if champion else ())

    return make


def test_a_small_gain_shows_beneath_large_differences_between_samples(client, make):
    (loss, score, log_prob) = to_champion(client, [make(1, 0.0, champion=True), make(2, 0.1)])
    assert (loss.label, score.label) == ("val/loss", "eval/niah_single_1/256/score")
    assert loss.cells[0].difference is None, "the champion is not compared with itself"
    assert loss.cells[1].difference.value == pytest.approx(-0.1, abs=0.01)
    assert texts(loss)[0] == "–" and texts(loss)[1].endswith("] *")
    assert score.cells[1].difference.value == 0.0
    assert texts(score)[1].startswith("+0.0000 [") and "*" not in texts(score)[1]
    assert log_prob.label == "eval/niah_single_1/256/log_prob"


def test_other_samples_cannot_be_paired(client, make):
    found = to_champion(client, [make(1, 0.0, champion=True), make(2, 0.1, scored_on="e2"), make(3, 0.1)])
    assert all(one.cells[1].difference is None and one.cells[2].difference is not None for one in found)
    assert to_champion(client, [make(4, 0.0, champion=True), make(5, 0.1, scored_on="e2")]) == []


def test_without_a_champion_or_its_evaluation_there_are_no_differences(client, make):
    assert to_champion(client, [make(1, 0.0), make(2, 0.1)]) == []
    lost = Version("m", 3, {"refine.evaluation": "e1", "refine.evaluation_run": "0" * 32}, ("champion",))
    assert to_champion(client, [lost, make(4, 0.1)]) == []
