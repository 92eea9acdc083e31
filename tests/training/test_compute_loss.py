"""`compute_loss` and `evaluate` use the model that they are given, as users of transformers' Trainer expect."""

from __future__ import annotations

import datasets
import pytest
import torch

from refine.errors import ModelError
from refine.objective import next_sequence_step
from refine.training.dataset import collate
from refine.training.order import sequence_seed
from tests.training.trained import trained


class Wrapper(torch.nn.parallel.DataParallel):
    """A wrapper that accelerate knows how to take off, and that calls the model's forward."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__(module)
        self.device_ids = []


@pytest.fixture
def trainer(tiny_model, arguments, rows):
    """A trainer after two steps, whose model is no longer the tiny model."""
    return trained(tiny_model(), arguments(max_steps=2), rows)


@pytest.fixture
def batch(trainer):
    """Two rows, as a pass has them."""
    return collate([trainer.rows[index] for index in (0, 1)])


def expected(trainer, model, batch) -> float:
    seeds = torch.tensor([sequence_seed(trainer.args.seed, trainer.state.global_step, n) for n in batch["sequences"]])
    result = next_sequence_step(model, batch["tokens"], trainer.objective, seeds, lengths=batch["lengths"])
    return float(result.loss.detach())


def test_another_model_gives_its_own_loss_and_enters_no_metric(trainer, tiny_model, batch):
    own, other = (float(trainer.compute_loss(model, batch).detach()) for model in (trainer.model, tiny_model()))
    assert own == pytest.approx(expected(trainer, trainer.model, batch), rel=1e-5)
    assert other == pytest.approx(expected(trainer, tiny_model(), batch), rel=1e-5) and other > own + 0.01
    assert not trainer._statistics.sums


def test_a_wrapped_model_is_unwrapped(trainer, tiny_model, batch):
    loss, result = trainer.compute_loss(Wrapper(tiny_model()), batch, return_outputs=True)
    assert float(loss.detach()) == pytest.approx(expected(trainer, tiny_model(), batch), rel=1e-5)
    assert torch.equal(result.loss, loss)


def test_a_model_without_a_memory_is_refused_by_name(trainer, batch):
    with pytest.raises(ModelError, match="Linear has no memory to tap: expected a model of"):
        trainer.compute_loss(torch.nn.Linear(2, 2), batch)


def test_evaluate_scores_the_model_that_the_trainer_has_now(trainer, tiny_model, rows):
    held_out = datasets.Dataset.from_list(rows[:3])
    after = trainer.evaluate(held_out)["eval_loss"]
    trainer.model = tiny_model()
    before = trainer.evaluate(held_out)["eval_loss"]
    assert before > after + 0.01
