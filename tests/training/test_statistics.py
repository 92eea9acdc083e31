"""Denominators and metrics of a step. In a whole run: tests/training/test_trainer.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from refine.models.mixture import RouterCounts
from refine.settings.objective import ObjectiveSettings
from refine.training.dataset import collate, token_rows
from refine.training.order import STAND_IN
from refine.training.statistics import Counts, StepStatistics, counts_of
from refine.training.statistics import at_marks as at_marks_of

OBJECTIVE = ObjectiveSettings(positions=3, rollout_length=3, rollouts=2, min_prefix=4)


def batch(*lengths: int, **more):
    return collate([token_rows([{"tokens": list(range(1, length + 1))}])[0] for length in lengths]) | more


def answers(loss: float, accuracy: float, tokens: int) -> SimpleNamespace:
    return SimpleNamespace(loss=torch.tensor(loss), accuracy=torch.tensor(accuracy), answer_tokens=tokens)


def test_counts_follow_from_the_lengths_alone():
    assert counts_of(batch(30, 20), OBJECTIVE) == Counts(50, 48, 2 * 3 * 2 * 3)
    assert counts_of(batch(30, 20), None) == Counts(50, 48, 0)
    assert counts_of(batch(30, 20, kind="answers", prompts=[25, 18]), OBJECTIVE) == Counts(50, 0, 0, 7)
    assert counts_of(collate([token_rows([{"tokens": [1, 2]}])[STAND_IN]]), OBJECTIVE) == Counts(0, 0, 0)


def test_focus_and_marks_are_counted():
    rows = [{"tokens": list(range(1, 31)), "marks": marks} for marks in ([4, 8, 29], [])]
    marked = collate([token_rows(rows)[n] for n in range(2)])
    at_marks = OBJECTIVE.model_copy(update={"selection": "marked", "focus_weight": 0.1})
    assert counts_of(marked, at_marks) == Counts(60, 58, 2 * 2 * 3, focus_tokens=2 * 3)
    assert counts_of(marked, at_marks.model_copy(update={"nsp_weight": 0.0})) == Counts(60, 58, 0, focus_tokens=6)
    values = torch.arange(60.0).view(2, 30)
    assert [found.tolist() for found in at_marks_of(values, marked)] == [
        list(range(3, 11)), list(range(7, 15)), [28.0]
    ]  # fmt: skip


def test_texts_too_short_for_a_rollout_are_noticed():
    assert counts_of(batch(6), OBJECTIVE).lacks_positions(OBJECTIVE)
    assert not counts_of(batch(30), OBJECTIVE).lacks_positions(OBJECTIVE)
    assert not counts_of(batch(6), OBJECTIVE).lacks_positions(OBJECTIVE.model_copy(update={"nsp_weight": 0.0}))


def test_answers_are_weighted_by_their_tokens_and_losses_add_up():
    statistics, other = StepStatistics(), StepStatistics()
    statistics.add(answers(0.5, 1.0, 1), batch(5, kind="answers", prompts=[4]))
    other.add(answers(0.25, 0.0, 3), batch(9, kind="answers", prompts=[6]))
    found = StepStatistics.merged([statistics, other]).metrics(steps=2)
    assert found == {"answer_loss": pytest.approx(0.375), "answer_accuracy": pytest.approx(0.25)}


def test_routers_are_counted_over_passes_and_processes():
    def counts(load, entropy, tokens):
        return RouterCounts(torch.tensor(load), torch.tensor(entropy), tokens)

    one, other = StepStatistics(), StepStatistics()
    one.add_routing(counts([[4, 0], [1, 3]], [2.0, 1.0], 4))
    one.add_routing(counts([[2, 0], [1, 1]], [1.0, 0.0], 2))
    other.add_routing(counts([[0, 2], [2, 0]], [1.0, 1.0], 2))
    found = StepStatistics.merged([one, other, StepStatistics()]).metrics()
    # layer 0: 6 and 2 of 8 tokens; layer 1: 4 and 4
    assert found == {"router/load/mean": 1.25, "router/load/max": 1.5, "router/entropy": pytest.approx(3 / 8)}


def test_a_single_value_has_no_spread():
    statistics = StepStatistics()
    one = torch.ones(1)
    statistics.values = {"reward/binary": [0.4 * one], "advantages": [one], "ratio": [one]}
    statistics.sums = {"rollouts": 1, "nsp_loss": 0.1, "clipped": 0.0, "rollout_tokens": 3}
    found = statistics.metrics(quantiles_of="binary")
    assert found["reward/binary/std"] == 0.0 and found["reward/binary/q50"] == pytest.approx(0.4)
    assert statistics.histograms()["reward/binary/histogram"] == [0] * 8 + [1] + [0] * 11
