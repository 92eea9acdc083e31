"""Test-time training lowers the prompt's loss, and restores the model."""

from __future__ import annotations

import hashlib

import pytest
import torch

from refine.errors import TrainingError
from refine.settings.training import TestTimeSettings
from refine.training.test_time import TestTimeTrainer, adapted

OBJECTIVE = {"positions": 3, "rollout_length": 3, "min_prefix": 4, "reward": "binary", "nsp_weight": 0.4}


def settings(**more) -> TestTimeSettings:
    return TestTimeSettings.model_validate({"learning_rate": 1e-2, "steps": 2, "objective": OBJECTIVE, **more})


def hash_of(model) -> str:
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture
def prompts(rows) -> list[torch.Tensor]:
    return [torch.tensor(row["tokens"]) for row in rows[:4]]


def loss_on(model, prompt: torch.Tensor) -> float:
    with torch.no_grad():
        return float(model(prompt[None], labels=prompt[None]).loss)


@pytest.mark.parametrize("arm", ["sft", "refine"])
def test_adapting_lowers_the_prompt_s_loss(tiny_model, prompts, arm):
    model = tiny_model()
    for prompt in prompts:
        before = loss_on(model, prompt)
        with adapted(model, prompt, settings(), arm) as done:
            assert loss_on(model, prompt) < before - 0.05
            assert done.losses[0] == pytest.approx(before, rel=1e-4) and done.losses[1] < done.losses[0]
            assert len(done.rewards) == (2 if arm == "refine" else 0) and done.seconds > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_restored_bit_for_bit(tiny_model, prompts, dtype):
    model = tiny_model().to(dtype)
    before, trainer = hash_of(model), TestTimeTrainer(settings())
    for prompt in prompts:
        with trainer(model, prompt[None]):
            assert hash_of(model) != before
        assert hash_of(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_weights_are_restored_after_an_error_while_answering(tiny_model, prompts):
    model = tiny_model()
    before = hash_of(model)
    with pytest.raises(ZeroDivisionError), adapted(model, prompts[0], settings()):
        raise ZeroDivisionError
    assert hash_of(model) == before


def test_the_order_of_prompts_changes_nothing(tiny_model, prompts):
    model, hashes = tiny_model(), []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        trainer, found = TestTimeTrainer(settings()), {}
        for number in order:
            with trainer(model, prompts[number]):
                found[number] = hash_of(model)
        hashes.append(found)
    assert hashes[0] == hashes[1] and len(set(hashes[0].values())) == 4


def test_weights_carry_over_from_prompt_to_prompt_if_asked(tiny_model, prompts):
    model, trainer = tiny_model(), TestTimeTrainer(settings(carry_over=True))
    seen = [hash_of(model)]
    for prompt in prompts:
        with trainer(model, prompt):
            inside = hash_of(model)
        assert hash_of(model) == inside
        seen.append(inside)
    assert len(set(seen)) == 5


def test_the_user_s_gradients_and_mode_do_not_change(tiny_model, prompts):
    model = tiny_model().eval()
    weight = next(model.parameters())
    weight.grad = torch.full_like(weight, 7.0)
    with adapted(model, prompts[0], settings()):
        assert not model.training
    assert not model.training and bool((weight.grad == 7.0).all())


def test_a_bf16_model_learns_from_steps_smaller_than_its_rounding(tiny_model, prompts):
    """Forty steps of 1e-5 on weights of about 0.02: each is below half a bf16 spacing, their sum is not."""
    model = tiny_model().to(torch.bfloat16)
    before = hash_of(model)
    with adapted(model, prompts[0], settings(learning_rate=1e-5, steps=40), "sft"):
        assert hash_of(model) != before


def test_a_loss_that_is_not_finite_is_an_error_and_the_weights_are_restored(tiny_model, prompts):
    model = tiny_model()
    with torch.no_grad():
        model.get_output_embeddings().weight[3].fill_(float("inf"))
    before = hash_of(model)
    with (
        pytest.raises(TrainingError, match=r"prompt of \d+ tokens is nan.*test_time\.learning_rate"),
        adapted(model, prompts[0], settings()),
    ):
        pass
    assert hash_of(model) == before


def test_a_prompt_too_short_for_rollouts_trains_the_next_token_loss_alone(tiny_model):
    with adapted(tiny_model(), torch.tensor([1, 2, 3]), settings()) as done:
        assert len(done.losses) == 2 and not done.rewards


def test_it_is_an_adapter_for_evaluation(tiny_model, prepared_folder):
    from transformers import AutoTokenizer

    from refine.data.prompts.prompt import Prompt
    from refine.evaluation.answers import answer

    model, tokenizer = tiny_model(), AutoTokenizer.from_pretrained(prepared_folder / "tokenizer")
    prompts = [Prompt("w3 w4", ("w5",), "niah_single_1", 48, 4), Prompt("w9", ("w1",), "niah_single_1", 48, 4)]
    before, trainer = hash_of(model), TestTimeTrainer(settings())
    answers = answer(model, tokenizer, prompts, adapter=trainer)
    assert len(answers) == 2 and all(one.adapt_seconds > 0 for one in answers)
    assert len(trainer.adaptations) == 2 and hash_of(model) == before
