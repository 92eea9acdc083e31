"""Statistics that went through a row of numbers are the same. With real processes: tests/training/test_torchrun.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from refine.models import from_config
from refine.models.mixture import RouterCounts, take_counts
from refine.objective import next_sequence_step
from refine.settings.objective import ObjectiveSettings
from refine.training import exchange
from refine.training.dataset import collate, token_rows
from refine.training.statistics import SUMS, Counts, StepStatistics, counts_of
from tests.models.configs import CONFIGS

OBJECTIVE = ObjectiveSettings(
    positions=3, rollout_length=3, rollouts=2, min_prefix=4, focus_weight=0.1, selection="marked", reward="binary"
)
ROUTERS = (2, 4)


@pytest.fixture(scope="module")
def batch() -> dict[str, Any]:
    rows = token_rows([{"tokens": [(5 * t * t + row) % 61 for t in range(40)], "marks": [8, 20]} for row in range(2)])
    return collate([rows[0], rows[1]])


@pytest.fixture(scope="module")
def parts(batch) -> list[StepStatistics]:
    """The statistics of three processes: one with two steps, one with a step on answers, one without any pass."""
    torch.manual_seed(0)
    model = from_config({**CONFIGS["delta_net"], "vocab_size": 61})
    first, second = StepStatistics(), StepStatistics()
    for seed in (0, 2):
        seeds = torch.tensor([seed, seed + 1])
        first.add(next_sequence_step(model, batch["tokens"], OBJECTIVE, seeds, marks=batch["marks"]), batch)
    first.add_routing(RouterCounts(torch.tensor([[4, 0, 1, 1], [1, 3, 2, 0]]), torch.tensor([2.0, 1.1]), 6))
    answers = SimpleNamespace(loss=torch.tensor(0.1), accuracy=torch.tensor(0.5), answer_tokens=2)
    second.add(answers, {**batch, "kind": "answers", "prompts": [38, 38]})
    return [first, second, StepStatistics()]


@pytest.fixture(scope="module")
def room(batch) -> exchange.Room:
    tokens = 2 * counts_of(batch, OBJECTIVE).rollout_tokens
    return exchange.Room(exchange.Room.of(OBJECTIVE, tokens + 6).values, ROUTERS)


def test_statistics_come_out_of_a_row_as_they_went_in(parts, room):
    rows = [exchange.packed(part, room) for part in parts]
    assert len({row.shape for row in rows}) == 1 and {row.dtype for row in rows} == {torch.float64}
    for row, part in zip(rows, parts, strict=True):
        found = exchange.unpacked(row, room)
        assert found.sums == part.sums and found.log_prob_gap == part.log_prob_gap
        assert set(found.values) == set(part.values)
        assert all(
            torch.equal(torch.cat(found.values[name]), torch.cat(values)) for name, values in part.values.items()
        )
        assert (found.routing is None) is (part.routing is None)
    assert torch.equal(exchange.unpacked(rows[0], room).routing.load, parts[0].routing.load)


def test_the_metrics_of_all_processes_are_those_of_the_statistics_themselves(parts, room):
    expected, found = (
        StepStatistics.merged(each)
        for each in (parts, [exchange.unpacked(exchange.packed(part, room), room) for part in parts])
    )
    assert found.metrics(2, "binary") == expected.metrics(2, "binary")
    assert found.histograms() == expected.histograms()
    names = {"reward/binary/q50", "marked_loss", "focus_loss", "answer_loss", "router/entropy"}
    assert names <= set(found.metrics(quantiles_of="binary"))


def test_every_sum_has_a_place(parts, room):
    assert set(SUMS) == {name for part in parts for name in part.sums}
    strange = StepStatistics()
    strange.sums["made up"] = 1.0
    with pytest.raises(AssertionError, match="made up"):
        exchange.packed(strange, room)


def test_room_follows_from_the_model_and_the_objective():
    mixture = from_config({**CONFIGS["qwen3_5_moe"], "vocab_size": 61})
    outside = OBJECTIVE.model_copy(update={"reward": "mine:length"})
    room = exchange.Room.of(outside, 12, mixture)
    assert room.routers == (CONFIGS["qwen3_5_moe"]["num_hidden_layers"], CONFIGS["qwen3_5_moe"]["num_experts"])
    assert room.values == {
        "reward/cosine": 4, "reward/binary": 4, "reward/hybrid": 4, "reward/length": 4, "advantages": 4, "ratio": 12
    }  # fmt: skip
    mixture.train().read(torch.arange(20)[None])
    counted, statistics = take_counts(mixture), StepStatistics()
    assert counted is not None and counted.tokens == 20
    statistics.add_routing(counted)
    found = exchange.unpacked(exchange.packed(statistics, room), room).routing
    assert torch.equal(found.load, counted.load) and torch.equal(found.entropy.float(), counted.entropy)


def test_one_process_has_the_counts_of_all():
    own = Counts(1, 2, 3, 4, 5)
    assert exchange.counts_of_all(own, 7, "cpu") == ([own], 7)
