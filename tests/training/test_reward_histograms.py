"""Every held-out rollout is in one bin, at every validation, across a resume."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from flows.preflight import validated
from refine import settings
from refine.objective.rewards import REWARDS
from refine.training import reward_histograms
from refine.training.trainer import RefineTrainer


def test_every_reward_has_a_range():
    assert set(reward_histograms.RANGES) == set(REWARDS), (
        "a new reward needs its range in refine/training/reward_histograms.py"
    )


@pytest.mark.parametrize("k", range(1, 13))
def test_rewards_on_the_edge_of_a_bin_are_in_the_bin_above(k):
    """Binary rewards are multiples of 1/k; float32 rounds some of them down."""
    shares = torch.arange(k + 1, dtype=torch.float32) / k
    found = reward_histograms.counts(shares, "binary")
    wanted = [0] * 20
    for hits in range(k + 1):
        wanted[min(20 * hits // k, 19)] += 1
    assert found == wanted


def test_bins_cover_the_range_and_what_is_not_finite_is_in_none():
    found = reward_histograms.counts(torch.tensor([-1.0, -0.99, 0.0, 0.999, 1.0, 1.0 + 1e-6, float("nan")]), "cosine")
    assert len(found) == 40 and sum(found) == 6
    assert found[0] == 2 and found[20] == 1 and found[39] == 3
    assert reward_histograms.Histogram("val", "cosine", 0, tuple(found), 0.3).edges[:2] == [-1.0, -0.95]


def test_each_validation_counts_every_rollout_once_with_the_logged_mean(tiny_model, arguments, rows):
    args = arguments(max_steps=3, eval_strategy="steps", eval_steps=2, eval_on_start=True)
    trainer = RefineTrainer(tiny_model(), args, train_dataset=rows, eval_dataset={"val": rows[:4], "other": rows[4:6]})
    trainer.train()
    found = reward_histograms.histograms(trainer.state.log_history)
    assert [(one.part, one.step) for one in found if one.kind == "binary"] == [
        (part, step) for step in (0, 2, 3) for part in ("val", "other")
    ]
    for one in found:
        (row,) = [row for row in trainer.state.log_history if row["step"] == one.step and f"{one.part}/loss" in row]
        assert sum(one.counts) == row[f"{one.part}/rollouts"]
        middle = sum(
            count * (low + reward_histograms.WIDTH / 2) for count, low in zip(one.counts, one.edges[:-1], strict=True)
        )
        assert middle / sum(one.counts) == pytest.approx(one.mean, abs=reward_histograms.WIDTH / 2 + 1e-3)


def test_what_evaluate_returns_are_numbers(tiny_model, arguments, rows):
    found = RefineTrainer(tiny_model(), arguments(), eval_dataset=rows[:2]).evaluate()
    assert all(isinstance(value, float) for value in found.values()) and "eval_reward/cosine/q50" in found


def test_the_preflight_names_the_metrics_of_validation(tiny_model, arguments, rows, params):
    training = settings.load(params).training
    trainer = RefineTrainer(tiny_model(), arguments(objective=training.mid.objective), eval_dataset=rows[:2])
    made = {name.replace("eval_", "val/", 1) for name in trainer.evaluate()} - {"val/tokens"}
    alone = training.model_copy(update={"post": None})
    assert made == validated(alone, answers=False) < validated(training, answers=True)
    assert {"val/answer_loss", "val/prompts/loss"} < validated(training, answers=True)


def test_a_table_and_a_picture_are_written_and_none_without_rollouts(tmp_path):
    row = {"step": 4, "val/reward/binary/histogram": [0] * 19 + [3], "val/reward/binary/mean": 1.0}
    later = {"step": 6, "val/reward/binary/histogram": [3] + [0] * 19, "val/reward/binary/mean": 0.0}
    table, picture = reward_histograms.write([row, {"step": 5, "train/loss": 1.0}, later], tmp_path)
    read = list(csv.DictReader(table.open()))
    assert len(read) == 40
    assert read[19] == {"data": "val", "reward": "binary", "step": "4", "low": "0.95", "high": "1.0", "rollouts": "3"}
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == [table.name, picture.name]
    (tmp_path / "none").mkdir()
    assert reward_histograms.write([{"step": 1, "train/loss": 1.0}], tmp_path / "none") == []


def test_the_picture_shows_each_validation_as_a_column_of_shares(tmp_path):
    from matplotlib.figure import Figure

    axis = Figure().subplots()
    first = reward_histograms.Histogram("val", "binary", 0, (3, 1) + (0,) * 18, 0.02)
    last = reward_histograms.Histogram("val", "binary", 10, (0, 8) + (0,) * 18, 0.07)
    drawn = reward_histograms._panel(axis, [first, last])
    assert drawn.get_array().reshape(20, 2)[:2].tolist() == [[0.75, 0.0], [0.25, 1.0]]
    assert axis.get_ylim() == (0.0, 0.1), "empty bins are cut off"


def test_a_resumed_run_ends_with_the_complete_table(tiny_model, arguments, rows, tmp_path):
    """The checkpoint restores the histograms of earlier validations."""
    args = arguments(max_steps=4, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2)
    whole = RefineTrainer(tiny_model(), args, train_dataset=rows, eval_dataset=rows[:3])
    whole.train()
    again = RefineTrainer(tiny_model(), args, train_dataset=rows, eval_dataset=rows[:3])
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert reward_histograms.histograms(again.state.log_history) == reward_histograms.histograms(
        whole.state.log_history
    )


def test_a_picture_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    from transformers import TrainerState

    state = TrainerState(is_world_process_zero=True)
    state.log_history = [{"step": 4, "val/reward/binary/histogram": [1] * 20, "val/reward/binary/mean": 0.5}]
    (tmp_path / "file").write_text("in the way")
    reward_histograms.RewardHistograms(tmp_path / "file" / "run").on_train_end(None, state, None)
    assert "was not drawn" in caplog.text and "metrics.jsonl" in caplog.text


def test_a_logged_row_survives_json(tiny_model, arguments, rows):
    trainer = RefineTrainer(tiny_model(), arguments(), eval_dataset=rows[:2])
    trainer.evaluate()
    (row,) = trainer.state.log_history
    assert json.loads(json.dumps(row)) == row
