"""A step counts every sequence once, whatever the batch. Short sequences train too. `result.py` is tested here too."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import Trainer, TrainingArguments

from refine.errors import SettingError
from refine.models.mixture import take_counts
from refine.objective import ObjectiveSettings, next_sequence_step
from refine.objective import spans as admissible

LENGTHS = [[149], [60, 7, 70], [24], [88], [30, 90]]
TOKENS = {"rows": 5, "length": 149}
SEEDS = torch.tensor([11, -5, 2**61, 7, 0])
SETTINGS = ObjectiveSettings(positions=4, rollouts=2, nsp_weight=1)


def denominators(settings: ObjectiveSettings) -> dict[str, int]:
    lengths = [length for row in LENGTHS for length in row]
    starts = sum(len(admissible(length, settings)) for length in lengths)
    return {
        "ntp_tokens": sum(length - 1 for length in lengths),
        "rollout_tokens": starts * settings.rollouts * settings.rollout_length,
    }


@pytest.mark.parametrize("passes", [[[0], [1], [2], [3], [4]], [[4, 1], [2, 0, 3]]])
@pytest.mark.parametrize("group", ["sequence", "position"])
def test_any_micro_batches_give_the_draws_and_the_gradient_of_the_whole_batch(model, draw_tokens, steps, passes, group):
    settings = SETTINGS.model_copy(update={"group": group})
    tokens, counts = draw_tokens(5, 149), denominators(settings)
    whole, wanted = steps.gradients(model, tokens, settings, SEEDS, lengths=LENGTHS)
    assert {"ntp_tokens": whole.ntp_tokens, "rollout_tokens": whole.rollout_tokens} == counts
    found = {key: torch.zeros_like(g) for key, g in wanted.items()}
    losses = torch.zeros(3)
    for rows in passes:
        lengths = [LENGTHS[b] for b in rows]
        width = max(sum(row) for row in lengths)
        part, gradients = steps.gradients(model, tokens[rows, :width], settings, SEEDS[rows], lengths=lengths, **counts)
        losses += torch.stack([part.loss.detach(), part.nsp_loss, part.ntp_loss])
        columns = part.positions.shape[1]
        assert torch.equal(part.positions, whole.positions[rows, :columns])
        assert torch.equal(part.rollouts, whole.rollouts[rows, :columns])
        assert torch.allclose(part.advantages, whole.advantages[rows, :columns], atol=1e-3)
        found = {key: g + gradients[key] for key, g in found.items()}
    assert torch.allclose(losses, torch.stack([whole.loss.detach(), whole.nsp_loss, whole.ntp_loss]), atol=2e-6)
    steps.same_gradients(found, wanted, 2e-5)


MARKS = [[3, 50, 51, 90, 140], [40, 66, 100], [], [70], [10, 29, 60, 119]]
FOCUS = SETTINGS.model_copy(update={"selection": "marked", "focus_weight": 0.5, "rollout_length": 3})


@pytest.mark.parametrize("fallback", ["none", "entropy"])
@pytest.mark.parametrize("nsp_weight", [0.0, 1.0])
def test_marks_and_focus_divide_into_micro_batches_and_packed_is_alone(model, draw_tokens, steps, fallback, nsp_weight):
    settings = FOCUS.model_copy(update={"fallback": fallback, "nsp_weight": nsp_weight})
    tokens = draw_tokens(5, 149)
    whole, wanted = steps.gradients(model, tokens, settings, SEEDS, lengths=LENGTHS, marks=MARKS)
    counts = {name: getattr(whole, name) for name in ("ntp_tokens", "rollout_tokens", "focus_tokens")}
    assert counts["focus_tokens"] == int(whole.valid.sum()) * 3 > 0
    assert counts["rollout_tokens"] == (counts["focus_tokens"] * 2 if nsp_weight else 0)
    found, focus = {key: torch.zeros_like(g) for key, g in wanted.items()}, 0.0
    for b in range(5):
        width = sum(LENGTHS[b])
        part, gradients = steps.gradients(
            model, tokens[b, None, :width], settings, SEEDS[b, None], lengths=[LENGTHS[b]], marks=[MARKS[b]], **counts
        )
        assert torch.equal(part.positions[0], whole.positions[b, : part.positions.shape[1]])
        found, focus = {key: g + gradients[key] for key, g in found.items()}, focus + float(part.focus_loss)
    assert focus == pytest.approx(float(whole.focus_loss), rel=1e-5)
    steps.same_gradients(found, wanted, 2e-5)


def test_without_a_start_a_sharded_model_s_blocks_are_called_as_often_and_nothing_else_changes(
    model, draw_tokens, steps, monkeypatch
):
    """Under FSDP2 each call of a block is an exchange, and in another process rows may have marks."""
    calls, tokens, block = [], draw_tokens(2, 60), type(model.model.layers[0])
    forward = block.forward
    monkeypatch.setattr(block, "forward", lambda self, *given: calls.append(given[0] is None) or forward(self, *given))
    steps.gradients(model, tokens, FOCUS, SEEDS[:2], lengths=[[60], [2]], marks=[[20, 30], []])
    with_starts, calls[:] = list(calls), []
    plain, wanted = steps.gradients(model, tokens, FOCUS, SEEDS[:2], lengths=[[60], [2]], marks=[[], []])
    assert len(calls) < len(with_starts)
    calls.clear()
    monkeypatch.setattr(type(model), "sharded", True)
    found, gradients = steps.gradients(model, tokens, FOCUS, SEEDS[:2], lengths=[[60], [2]], marks=[[], []])
    assert calls == with_starts
    assert torch.equal(found.loss, plain.loss) and found.rollout_tokens == plain.rollout_tokens == 0
    assert found.rollouts.shape == plain.rollouts.shape and not found.valid.any()
    steps.same_gradients(gradients, wanted, 1e-6)


def test_the_routers_of_a_sharded_mixture_do_not_count_the_rollout_that_stands_in(build, draw_tokens, monkeypatch):
    model, tokens, found = build("qwen3_5_moe").train(), draw_tokens(2, 60), []
    for sharded in (False, True):
        monkeypatch.setattr(type(model), "sharded", sharded)
        next_sequence_step(model, tokens, FOCUS, SEEDS[:2], marks=[[], []])
        found.append(take_counts(model))
    assert found[0].tokens == found[1].tokens == 120
    assert torch.equal(found[0].load, found[1].load) and torch.equal(found[0].entropy, found[1].entropy)


def test_at_marks_the_twin_draws_the_same_and_has_the_same_gradient(model, draw_tokens, steps):
    (one, wanted), (twin, found) = steps.both(model, draw_tokens(5, 149), FOCUS, SEEDS, lengths=LENGTHS, marks=MARKS)
    steps.same_draws(one, twin)
    steps.same_gradients(found, wanted, 2e-5)


def test_focus_is_the_mean_cross_entropy_of_the_true_tokens_and_needs_no_rollouts(model, draw_tokens):
    tokens = draw_tokens(1, 60)
    settings = FOCUS.model_copy(update={"nsp_weight": 0.0, "ntp_weight": 0.3})
    result = next_sequence_step(model, tokens, settings, SEEDS[:1], marks=[[20, 22]])
    log_probs = model.logits(model.read(tokens).hidden[0]).log_softmax(-1).detach()
    plain = [-float(log_probs[i - 1, tokens[0, i]]) for mark in (20, 22) for i in range(mark, mark + 3)]
    assert float(result.focus_loss) == pytest.approx(sum(plain) / 6, rel=1e-5)
    assert float(result.loss) == pytest.approx(0.3 * float(result.ntp_loss) + 0.5 * sum(plain) / 6, rel=1e-5)
    assert sorted(result.positions[result.valid].tolist()) == [20, 22] and result.rollouts.shape == (1, 4, 0, 3)
    every = -log_probs[:-1].gather(1, tokens[0, 1:, None])[:, 0]
    assert torch.allclose(result.cross_entropy[0, :-1], every, atol=1e-5) and result.cross_entropy[0, -1] == 0


def test_focus_falls_at_the_marks_when_it_alone_is_trained(build, draw_tokens):
    model, tokens = build("gated_deltanet"), draw_tokens(1, 60)
    settings = FOCUS.model_copy(update={"nsp_weight": 0.0, "ntp_weight": 0.0})
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for step in range(15):
        result = next_sequence_step(model, tokens, settings, torch.tensor([step]), marks=[[20, 40]])
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        losses.append(float(result.focus_loss))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("length", [2, 3, 19, 20, 24, 25, 26, 31])
def test_sequences_too_short_for_all_chunks_get_fewer_positions_or_the_next_token_loss_alone(
    model, draw_tokens, length
):
    tokens = draw_tokens(2, length)
    result = next_sequence_step(model, tokens, ObjectiveSettings(), SEEDS[:2])
    assert int(result.valid.sum()) == 2 * len(admissible(length, ObjectiveSettings()))
    logits = model.logits(model.read(tokens).hidden[:, :-1].detach())
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert torch.allclose(result.ntp_loss, plain, atol=1e-5)
    if length < 25:
        assert torch.allclose(result.loss.detach(), plain, atol=1e-5) and result.nsp_loss == 0
        assert result.advantages.shape == (2, 8, 1) and not result.advantages.any()
    result.loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_sequence_of_one_token_predicts_nothing_and_breaks_nothing(model, draw_tokens):
    result = next_sequence_step(model, draw_tokens(2, 1), ObjectiveSettings(), SEEDS[:2])
    assert result.loss.detach() == 0 and result.ntp_accuracy == 0
    result.loss.backward()


def test_one_rollout_alone_has_no_advantage_and_leaves_the_next_token_gradient(model, draw_tokens, steps):
    tokens = draw_tokens(2, 100)
    lone, found = steps.gradients(model, tokens, ObjectiveSettings(positions=1), SEEDS[:2])
    assert lone.valid.all() and not lone.advantages.any()
    _, wanted = steps.gradients(model, tokens, ObjectiveSettings(nsp_weight=0), SEEDS[:2])
    steps.same_gradients(found, wanted, 1e-6)


def test_the_loss_is_the_weighted_sum_of_its_parts(model, draw_tokens):
    settings = SETTINGS.model_copy(update={"nsp_weight": 0.7, "ntp_weight": 0.3})
    counts = {"ntp_tokens": 1000, "rollout_tokens": 77}
    result = next_sequence_step(model, draw_tokens(2, 149), settings, SEEDS[:2], **counts)
    assert torch.allclose(result.loss.detach(), 0.7 * result.nsp_loss + 0.3 * result.ntp_loss, atol=1e-6)
    default = next_sequence_step(model, draw_tokens(2, 149), settings, SEEDS[:2])
    assert torch.allclose(result.ntp_loss * 1000, default.ntp_loss * 2 * 148, rtol=1e-5)
    assert default.rollout_tokens == int(default.valid.sum()) * 2 * 5


def test_accuracy_entropy_and_loss_are_those_of_the_real_tokens(model, draw_tokens):
    tokens = draw_tokens(2, 60)
    result = next_sequence_step(model, tokens, ObjectiveSettings(), SEEDS[:2], lengths=[[60], [20, 25]])
    right, loss, entropies = 0, 0.0, []
    for b, start, length in ((0, 0, 60), (1, 0, 20), (1, 20, 25)):
        document = tokens[b, None, start : start + length]
        log_probs = model.logits(model.read(document).hidden[0].detach()).log_softmax(-1)
        right += int((log_probs[:-1].argmax(-1) == document[0, 1:]).sum())
        loss -= float(log_probs[:-1].gather(1, document[0, 1:, None]).detach().sum())
        entropies.append(torch.distributions.Categorical(logits=log_probs).entropy())
    assert float(result.ntp_accuracy) == pytest.approx(right / (59 + 19 + 24))
    assert float(result.ntp_loss) == pytest.approx(loss / (59 + 19 + 24), rel=1e-5)
    assert torch.allclose(result.entropy[0], entropies[0], atol=1e-5)
    assert torch.allclose(result.entropy[1, :45], torch.cat(entropies[1:]), atol=1e-5)
    assert not result.entropy[1, 45:].any()


def test_gradient_checkpointing_changes_nothing(model, draw_tokens, steps):
    tokens = draw_tokens(2, 211)
    plain, wanted = steps.gradients(model, tokens, SETTINGS, SEEDS[:2])
    model.model.gradient_checkpointing = True
    found, gradients = steps.gradients(model.train(), tokens, SETTINGS, SEEDS[:2])
    steps.same_draws(found, plain)
    steps.same_gradients(gradients, wanted, 1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_backward_pass_gives_the_same_inside_the_autocast_region(model, draw_tokens, checkpointing):
    model.model.gradient_checkpointing = checkpointing
    gradients = []
    for inside in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            result = next_sequence_step(model, draw_tokens(2, 149), SETTINGS, SEEDS[:2])
            if inside:
                result.loss.backward()
        if not inside:
            result.loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    assert gradients[0].any() and torch.equal(*gradients)


def test_everything_but_the_loss_is_detached(model, draw_tokens):
    result = next_sequence_step(model, draw_tokens(2, 60), SETTINGS, SEEDS[:2])
    tensors = [*vars(result).values(), *result.rewards.values()]
    assert [x is result.loss for x in tensors if isinstance(x, torch.Tensor) and x.requires_grad] == [True]


def test_without_gradient_the_same_is_measured(model, draw_tokens):
    tokens = draw_tokens(2, 149)
    wanted = next_sequence_step(model, tokens, SETTINGS, SEEDS[:2])
    with torch.no_grad():
        found = next_sequence_step(model, tokens, SETTINGS, SEEDS[:2])
    assert torch.equal(found.rollouts, wanted.rollouts) and not found.loss.requires_grad
    assert torch.allclose(found.ntp_loss, wanted.ntp_loss)


def test_a_further_update_keeps_rewards_advantages_and_old_log_probabilities(model, draw_tokens):
    tokens = draw_tokens(2, 149)
    first = next_sequence_step(model, tokens, SETTINGS, SEEDS[:2])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.1  # enough to move a ratio past the clip in every model
    second = next_sequence_step(model, tokens, SETTINGS, SEEDS[:2] + 99, reuse=first)
    third = next_sequence_step(model, tokens, SETTINGS, SEEDS[:2], reuse=second)
    for name in ("positions", "rollouts", "advantages", "old_log_probs"):
        assert torch.equal(getattr(second, name), getattr(first, name)), name
        assert torch.equal(getattr(third, name), getattr(first, name)), name
    assert torch.equal(first.old_log_probs, first.log_probs)
    assert torch.allclose(second.ratio[first.valid], (second.log_probs - first.log_probs)[first.valid].exp())
    assert torch.allclose(third.ratio, second.ratio) and second.clip_fraction > 0


def test_trained_on_its_next_sequence_loss_alone_the_reward_grows(build, draw_tokens):
    """Twenty updates on one sequence make the rewarded rollouts likelier."""
    model, tokens = build("delta_net"), draw_tokens(1, 100)
    settings = ObjectiveSettings(
        positions=8, rollouts=16, rollout_length=2, reward="binary", group="position", nsp_weight=1, ntp_weight=0
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rewards = []
    for step in range(20):
        result = next_sequence_step(model, tokens, settings, torch.tensor([step]))
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        rewards.append(float(result.rewards["binary"][result.valid].mean()))
    assert sum(rewards[-5:]) > sum(rewards[:5]) * 1.5


class Objective(Trainer):
    """transformers.Trainer with the step as its loss, as a user would write it."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return next_sequence_step(model, inputs["input_ids"], SETTINGS, inputs["seed"]).loss


@pytest.mark.parametrize("bf16", [False, True])
def test_it_trains_in_transformers_trainer_under_accelerate(model, draw_tokens, tmp_path, bf16):
    rows = [{"input_ids": row, "seed": torch.tensor(i)} for i, row in enumerate(draw_tokens(8, 90))]
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    recompute = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        bf16=bf16,
        learning_rate=1e-3,
        report_to=[],
        remove_unused_columns=False,
        use_cpu=True,
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        **{recompute: True},
    )
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    trainer = Objective(model, arguments, train_dataset=rows)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert len(losses) == 3 and all(0 < loss < 20 for loss in losses)
    assert any(not torch.equal(p, before[key]) for key, p in model.named_parameters())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seeds": torch.tensor([1])}, r"seeds must be int64 of shape \[2\], one a row"),
        ({"seeds": torch.tensor([1.0, 2.0])}, r"seeds must be int64 of shape \[2\]"),
        ({"positions": torch.tensor([[30], [97]])}, r"positions\[1, 0\] is 97: expected -1, or 1 or more"),
        ({"ntp_tokens": -1}, r"ntp_tokens is -1: expected those of the whole optimizer step, and this pass has 198"),
        ({"ntp_tokens": 0}, r"ntp_tokens is 0"),
        ({"rollout_tokens": 0}, r"rollout_tokens is 0: .* and this pass has"),
        ({"positions": torch.tensor([30, 40])}, r"positions must be int64 of shape \[2, c\]"),
        (
            {"positions": torch.tensor([[30], [40]]), "rollouts": torch.zeros(2, 1, 2, 4, dtype=torch.int64)},
            r"rollouts have shape \(2, 1, 2, 4\): expected int64 of shape \[2, 1, n, 5\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(build, draw_tokens, given, message):
    seeds = given.pop("seeds", SEEDS[:2])
    with pytest.raises(SettingError, match=message):
        next_sequence_step(build("delta_net"), draw_tokens(2, 100), ObjectiveSettings(), seeds, **given)
