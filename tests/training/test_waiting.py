"""How often an optimizer step waits for an accelerator before its backward pass is queued: counted on a pretended one
(tests/fixtures/pretended_device.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from refine.models import from_config
from refine.ops import layout
from refine.ops.delta_rule import channel_decay
from refine.training.statistics import StepStatistics, on_host
from refine.training.trainer import RefineTrainer
from tests.fixtures.pretended_device import DEVICE, Elsewhere, Watch, elsewhere, move_model
from tests.models.configs import CONFIGS
from tests.models.conftest import layered

# a mixture waits for the sizes of its groups where there are no grouped products, as on this device
KINDS = {kind: config for kind, config in CONFIGS.items() if "num_experts" not in config}
KINDS["kimi_linear"] = {**CONFIGS["kimi_linear"], "num_experts": 0}
OBJECTIVE = {"positions": 3, "rollouts": 2, "rollout_length": 3, "min_prefix": 4}
ROWS = [{"tokens": [(3 * t * t + 7 * row) % 61 for t in range(128)], "document": f"d{row}"} for row in range(4)]
UNEVEN = [{**row, "tokens": row["tokens"][: 60 + 17 * n]} for n, row in enumerate(ROWS)]
SHAPES = [(ROWS, {}), (UNEVEN, {}), (UNEVEN, {"packing": True, "max_length": 128})]


def waited(arguments, rows, config, layers, monkeypatch, **more: Any) -> tuple[RefineTrainer, Watch, dict[str, int]]:
    """One step on the pretended device up to its backward pass: the watch, and the counts until then."""
    torch.manual_seed(0)
    model = from_config({**layered(config, layers), "vocab_size": 61})
    args = arguments(max_steps=1, sequences_per_step=2, per_device_train_batch_size=2, objective=OBJECTIVE, **more)
    trainer = RefineTrainer(model, args, train_dataset=rows)
    for kept in (layout._uploaded, channel_decay._kept_pairs):  # each count is that of a process's first step
        kept.cache_clear()
    trainer.create_optimizer_and_scheduler(1)
    move_model(model)
    monkeypatch.setitem(trainer.args.__dict__, "_setup_devices", DEVICE)
    watch, counts = Watch(), {}

    def backward(loss: torch.Tensor, **_: Any) -> None:
        assert isinstance(loss, Elsewhere)
        counts.update(waits=sum(watch.synchronisations.values()), copies=sum(watch.copies.values()))

    monkeypatch.setattr(trainer.accelerator, "backward", backward)
    monkeypatch.setattr(trainer, "_refuse_non_finite_loss", lambda result, inputs: float(result.loss))
    batches = iter(trainer.get_train_dataloader())
    with watch:
        (step,), tokens = trainer.get_batch_samples(batches, 1, DEVICE)
        trainer.training_step(model, step, tokens)
    return trainer, watch, counts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "more"), SHAPES, ids=["even", "uneven", "packed"])
def test_a_step_waits_three_times_and_copies_ten_times_at_most_however_many_layers_it_has(
    kind, rows, more, arguments, monkeypatch
):
    """Before its backward pass. What all layers need is moved once a batch; maps of all tokens are made there."""
    (_, _, few), (_, watch, many) = (waited(arguments, rows, KINDS[kind], n, monkeypatch, **more) for n in (2, 6))
    assert few == many
    assert few["waits"] <= 3 and few["copies"] <= 10, watch.copies


def test_statistics_leave_the_device_once_after_the_backward_pass(arguments, monkeypatch):
    trainer, watch, counts = waited(arguments, ROWS, CONFIGS["delta_net"], 2, monkeypatch)
    assert sum(watch.synchronisations.values()) == counts["waits"] + 1, watch.synchronisations
    assert sum(watch.copies.values()) == counts["copies"] + 1, watch.copies
    assert trainer._statistics.sums["rollouts"] > 0


def test_statistics_that_were_moved_together_are_the_same_to_the_last_bit(arguments, monkeypatch):
    kept: list[tuple[Any, Any]] = []
    monkeypatch.setattr(StepStatistics, "add", lambda self, result, batch: kept.append((result, batch)))
    waited(arguments, UNEVEN, CONFIGS["delta_net"], 1, monkeypatch)
    here, _ = kept[0]
    moved = {
        name: {kind: elsewhere(y) for kind, y in x.items()} if isinstance(x, dict) else x
        for name, x in vars(here).items()
    }
    moved |= {name: elsewhere(x) for name, x in vars(here).items() if isinstance(x, torch.Tensor)}
    with Watch() as watch:
        (there,) = on_host([type(here)(**moved)])
    assert sum(watch.copies.values()) == 1
    pairs = [(value, getattr(there, name)) for name, value in vars(here).items() if isinstance(value, torch.Tensor)]
    pairs += [(value, there.rewards[kind]) for kind, value in here.rewards.items()]
    assert len(pairs) > 15 and {x.dtype for x, _ in pairs} >= {torch.float32, torch.int64, torch.bool}
    for value, other in pairs:
        assert torch.equal(other, value) and other.dtype == value.dtype and type(other) is torch.Tensor
    assert there.rollout_tokens == here.rollout_tokens


def test_an_operation_on_both_sides_is_an_error_on_the_pretended_device():
    here, there = torch.ones(3), elsewhere(torch.ones(3))
    with Watch() as watch, pytest.raises(AssertionError, match="tensors on both devices"):
        here + there
    assert not watch.copies


def test_the_pretended_device_counts_what_a_real_one_waits_for():
    x = elsewhere(torch.arange(4.0))
    with Watch() as watch:
        float(x[0]), x.tolist(), x.nonzero(), x[x > 1], x.cpu(), bool((x > 1).any())
        assert sum(watch.synchronisations.values()) == 6 and sum(watch.copies.values()) == 1
        torch.tensor([1, 2], device=x.device), torch.arange(3).to(x.device), x[torch.tensor([0, 1])]
        assert sum(watch.copies.values()) == 4
        assert (x * 2).sum().device == x.device and x.cpu().device.type == "cpu"
