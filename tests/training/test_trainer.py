"""RefineTrainer: what a step computes does not depend on how it is cut into passes. The module
logged_validation is tested here too."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from refine.errors import ModelError, SettingError, TrainingError
from refine.objective import next_sequence_step
from refine.training.arguments import RefineArguments
from refine.training.trainer import RefineTrainer
from tests.training.trained import logged, trained


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_training_lowers_the_loss_and_logs_every_step(tiny_model, arguments, rows):
    trainer = trained(tiny_model(), arguments(max_steps=12), rows)
    losses = logged(trainer, "train/loss")
    assert len(losses) == 12 and losses[-1] < losses[0] - 0.2
    row = trainer.state.log_history[0]
    names = "ntp_loss nsp_loss entropy advantage/std ratio/mean clip_fraction log_prob_gap grad_norm tokens_per_second"
    rewards = "reward/cosine/mean reward/cosine/std reward/cosine/q50 reward/binary/mean reward/hybrid/mean"
    for name in f"{names} {rewards}".split():
        assert math.isfinite(row[f"train/{name}"]), name
    assert row["train/loss"] == pytest.approx(0.2 * row["train/nsp_loss"] + row["train/ntp_loss"], rel=1e-5)


def test_the_tokens_that_were_seen_are_counted_if_one_asks_for_it(tiny_model, arguments, rows):
    trainer = RefineTrainer(tiny_model(), arguments(include_num_input_tokens_seen="all"), train_dataset=rows)
    trainer.train()
    logged = [row["train/tokens"] for row in trainer.state.log_history if "train/tokens" in row]
    assert trainer.state.num_input_tokens_seen == sum(logged) > 0


@pytest.mark.parametrize("per_pass", [1, 2, 3])
def test_micro_batches_change_no_draw_no_loss_and_no_gradient(tiny_model, arguments, rows, per_pass):
    """After one step of SGD the weights have moved in the direction of the gradient."""
    whole = trained(tiny_model(), arguments(max_steps=1, optim="sgd", max_grad_norm=1.0), rows)
    cut = trained(
        tiny_model(), arguments(max_steps=1, optim="sgd", max_grad_norm=1.0, per_device_train_batch_size=per_pass), rows
    )
    start = flat(tiny_model())
    moved, also = flat(whole.model) - start, flat(cut.model) - start
    assert float((moved - also).norm() / moved.norm()) < 1e-4
    for key in ("loss", "ntp_loss", "ntp_accuracy", "entropy", "rollouts", "grad_norm"):
        name = f"train/{key}"
        assert logged(cut, name) == pytest.approx(logged(whole, name), rel=1e-4), name
    assert logged(cut, "train/reward/binary/mean") == pytest.approx(logged(whole, "train/reward/binary/mean"), abs=1e-6)


def test_a_step_s_loss_is_that_of_the_objective_on_the_same_sequences(tiny_model, arguments, rows):
    from refine.training.dataset import collate
    from refine.training.order import sequence_seed

    trainer = trained(tiny_model(), arguments(max_steps=1, per_device_train_batch_size=1), rows)
    taken = trainer.stream.taken(0)
    batch = collate([trainer.rows[index] for index in taken])
    seeds = torch.tensor([sequence_seed(trainer.args.seed, 0, index) for index in taken])
    result = next_sequence_step(tiny_model(), batch["tokens"], trainer.objective, seeds, lengths=batch["lengths"])
    assert logged(trainer, "train/loss")[0] == pytest.approx(float(result.loss.detach()), rel=1e-5)


def test_two_runs_with_one_seed_end_with_identical_weights(tiny_model, arguments, rows):
    one, two = (trained(tiny_model(), arguments(seed=5), rows) for _ in range(2))
    assert torch.equal(flat(one.model), flat(two.model))
    other = trained(tiny_model(), arguments(seed=6), rows)
    assert not torch.equal(flat(one.model), flat(other.model))


def test_the_sft_arm_is_the_same_run_without_the_next_sequence_loss(tiny_model, arguments, rows):
    sft = trained(tiny_model(), arguments(objective={"nsp_weight": 0.0}, max_steps=1), rows)
    refine = trained(tiny_model(), arguments(max_steps=1), rows)
    assert sft.stream == refine.stream
    assert logged(sft, "train/ntp_loss") == pytest.approx(logged(refine, "train/ntp_loss"), rel=1e-6)
    assert logged(sft, "train/loss") == pytest.approx(logged(sft, "train/ntp_loss"), rel=1e-6)
    assert not logged(sft, "train/nsp_loss") and not torch.equal(flat(sft.model), flat(refine.model))


def test_epochs_count_every_row_once_and_the_last_step_may_be_smaller(tiny_model, arguments, rows):
    trainer = trained(tiny_model(), arguments(max_steps=-1, num_train_epochs=1), rows)
    assert trainer.state.global_step == 3 and trainer.state.epoch == 1.0
    assert sum(logged(trainer, "train/tokens")) == sum(len(row["tokens"]) for row in rows)


def test_validation_counts_every_sequence_once_whatever_the_batch(tiny_model, arguments, rows):
    found = []
    for size in (1, 3, 10):
        args = arguments(per_device_eval_batch_size=size)
        found.append(RefineTrainer(tiny_model(), args, eval_dataset=rows).evaluate())
    for other in found[1:]:
        assert other["eval_loss"] == pytest.approx(found[0]["eval_loss"], rel=1e-5)
        assert other["eval_accuracy"] == pytest.approx(found[0]["eval_accuracy"], abs=1e-6)
        assert other["eval_reward/cosine/mean"] == pytest.approx(found[0]["eval_reward/cosine/mean"], rel=1e-4)


def test_validation_runs_at_its_interval_and_at_the_end_and_changes_no_weight(tiny_model, arguments, rows):
    plain = trained(tiny_model(), arguments(max_steps=5), rows)
    args = arguments(max_steps=5, eval_strategy="steps", eval_steps=2, eval_on_start=True)
    watched = trained(tiny_model(), args, rows, eval_dataset={"val": rows[:3], "second_domain": rows[3:5]})
    steps = [row["step"] for row in watched.state.log_history if "val/loss" in row]
    assert steps == [0, 2, 4, 5]
    assert len(logged(watched, "second_domain/accuracy")) == 4
    assert torch.equal(flat(plain.model), flat(watched.model))


def test_strategies_by_epoch_act_at_the_end_of_each_epoch(tiny_model, arguments, rows, tmp_path):
    args = arguments(max_steps=-1, num_train_epochs=3, eval_strategy="epoch", save_strategy="epoch", save_total_limit=9)
    trainer = trained(tiny_model(), args, rows, eval_dataset=rows[:2])
    assert trainer.state.global_step == 8, "30 sequences in steps of 4"
    assert [row["step"] for row in trainer.state.log_history if "val/loss" in row] == [3, 5, 8]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "checkpoint-3",
        "checkpoint-5",
        "checkpoint-8",
    ]


def test_text_trains_with_a_tokenizer(tiny_model, arguments, prepared_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(prepared_folder / "tokenizer")
    tokenizer.pre_tokenizer = None
    rows = [{"text": f"w{number} " * 30} for number in range(1, 6)]
    backend = tokenizer.backend_tokenizer
    from tokenizers.pre_tokenizers import WhitespaceSplit

    backend.pre_tokenizer = WhitespaceSplit()
    trainer = trained(tiny_model(), arguments(max_steps=2), rows, processing_class=tokenizer)
    assert logged(trainer, "train/tokens") == [124.0, 124.0], "the bos begins each text"


def test_packed_rows_train_like_their_documents(tiny_model, arguments, rows):
    """One step over all documents: the next-token loss is the same packed and with one document per row."""
    both = []
    for packing, per_step in ((False, 10), (True, 5)):
        args = arguments(
            max_steps=1,
            sequences_per_step=per_step,
            per_device_train_batch_size=10,
            max_length=100,
            packing=packing,
            objective={"nsp_weight": 0.0},
            train_sampling_strategy="sequential",
        )
        both.append(trained(tiny_model(), args, rows))
    assert len(both[1].rows) == 5
    assert logged(both[0], "train/tokens") == logged(both[1], "train/tokens")
    assert logged(both[1], "train/loss") == pytest.approx(logged(both[0], "train/loss"), rel=1e-5)


def test_documents_too_short_for_rollouts_train_the_next_token_loss_with_one_warning(tiny_model, arguments, caplog):
    short = [{"tokens": [1, 2, 3]}, {"tokens": [4, 5]}]
    trainer = trained(tiny_model(), arguments(max_steps=2, sequences_per_step=2), short)
    assert logged(trainer, "train/loss") == pytest.approx(logged(trainer, "train/ntp_loss"), rel=1e-6)
    assert [record.getMessage().partition(" tokens")[0] for record in caplog.records] == [
        "step 1: no sequence has the 7"
    ]


def test_sft_and_documents_long_enough_warn_of_nothing(tiny_model, arguments, rows, caplog):
    trained(tiny_model(), arguments(max_steps=1), rows)
    trained(tiny_model(), arguments(max_steps=1, objective={"nsp_weight": 0.0}), [{"tokens": [1, 2, 3]}])
    assert not caplog.records


def test_arguments_that_would_have_no_effect_are_refused(tiny_model, arguments, rows):
    with pytest.raises(SettingError, match="leave out data_collator, compute_metrics"):
        RefineTrainer(tiny_model(), arguments(), rows, compute_metrics=lambda _: {}, data_collator=list)


def test_writing_checkpoints_shows_no_bars(tiny_model, arguments, rows, capfd):
    trained(tiny_model(), arguments(max_steps=1, save_strategy="steps", save_steps=1), rows)
    assert capfd.readouterr().err == ""


def test_a_non_finite_loss_stops_before_the_weights_change_and_names_step_and_documents(tiny_model, arguments, rows):
    model = tiny_model()
    with torch.no_grad():
        model.get_output_embeddings().weight[3].fill_(float("inf"))
    before = flat(model)
    with pytest.raises(TrainingError, match=r"step 1: the loss is (nan|inf) .* on play-\d@0.*learning_rate") as error:
        trained(model, arguments(), rows)
    assert "\n" not in str(error.value)
    assert torch.equal(flat(model), before)


def test_a_non_finite_gradient_stops_before_the_weights_change(tiny_model, arguments, rows):
    model = tiny_model()
    model.model.norm.weight.register_hook(lambda gradient: gradient * float("nan"))
    before = flat(model)
    with pytest.raises(TrainingError, match=r"step 1: the gradient's norm is nan on play-\d@0; play-\d@0"):
        trained(model, arguments(), rows)
    assert torch.equal(flat(model), before)


def test_running_out_of_memory_names_the_settings_that_lower_it(tiny_model, arguments, rows, monkeypatch):
    import refine.training.trainer as module

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(module, "pass_loss", full)
    with pytest.raises(
        TrainingError, match=r"out of memory with 4 sequences of \d+ tokens.*sequences_per_pass \(now 4"
    ):
        trained(tiny_model(), arguments(), rows)


def test_the_saved_config_does_not_turn_the_cache_off(tiny_model, arguments, rows):
    model = tiny_model()
    RefineTrainer(model, arguments(), train_dataset=rows)
    assert model.config.use_cache is True


def test_a_model_without_a_memory_is_refused(arguments, rows):
    with pytest.raises(ModelError, match="Linear has no memory to tap"):
        RefineTrainer(torch.nn.Linear(2, 2), arguments(), train_dataset=rows)


def test_objective_settings_are_checked_by_the_arguments(tmp_path):
    with pytest.raises(SettingError, match=r"RefineArguments\.objective.*did you mean 'positions'"):
        RefineArguments(output_dir=str(tmp_path), objective={"position": 8})


def test_arguments_survive_as_json(arguments):
    import json

    assert json.loads(arguments().to_json_string())["objective"]["positions"] == 3


@pytest.mark.parametrize("options", [{"bf16": True}, {"recompute": True}])
def test_mixed_precision_and_recomputing_activations_train(tiny_model, arguments, rows, options, caplog):
    from refine.training.arguments import _has

    if options.pop("recompute", False):
        options["activation_checkpointing" if _has("activation_checkpointing") else "gradient_checkpointing"] = True
    plain = trained(tiny_model(), arguments(max_steps=2), rows)
    with caplog.at_level(logging.ERROR):
        other = trained(tiny_model(), arguments(max_steps=2, **options), rows)
    assert logged(other, "train/ntp_loss") == pytest.approx(logged(plain, "train/ntp_loss"), rel=0.02)
    assert all(parameter.dtype == torch.float32 for parameter in other.model.parameters())


def test_a_validation_that_is_not_finite_is_an_error_and_other_values_become_null(tiny_model, arguments, rows):
    model = tiny_model()
    trainer = RefineTrainer(model, arguments(), rows, eval_dataset=rows[:2])
    trainer.log({"val/ratio": float("inf"), "val/loss": 1.0})
    assert trainer.state.log_history[-1]["val/ratio"] is None
    with torch.no_grad():
        model.get_output_embeddings().weight[3].fill_(float("nan"))
    with pytest.raises(TrainingError, match="val/loss is nan in the validation after step 0"):
        trainer.evaluate()


def ends_in_w1(hidden, actual, rollouts, text, tokenizer):
    """A reward of the tests: whether the last token is in the first half of the vocabulary."""
    return (rollouts[..., -1] < 32).float()


@pytest.mark.parametrize("reward", [ends_in_w1, "by name"])
def test_a_reward_from_outside_is_optimised_logged_and_validated(tiny_model, arguments, rows, reward, monkeypatch):
    import sys
    import types

    module = types.ModuleType("rewards_of_a_user")
    module.ends_in_w1 = ends_in_w1
    monkeypatch.setitem(sys.modules, "rewards_of_a_user", module)
    if reward == "by name":
        reward = "rewards_of_a_user:ends_in_w1"
    args = arguments(max_steps=2, eval_strategy="steps", eval_steps=2)
    plain = trained(tiny_model(), arguments(max_steps=2), rows)
    trainer = trained(tiny_model(), args, rows, eval_dataset=rows[:3], reward=reward)
    assert logged(trainer, "train/reward/ends_in_w1/q50") and logged(trainer, "val/reward/ends_in_w1/mean")
    assert not logged(trainer, "val/reward/ends_in_w1/histogram") and logged(trainer, "val/reward/cosine/histogram")
    assert 0 < logged(trainer, "train/reward/ends_in_w1/mean")[0] < 1
    assert not torch.equal(flat(trainer.model), flat(plain.model))


def test_a_reward_that_does_not_fit_is_refused_before_training(tiny_model, arguments, rows):
    def flat_one(hidden, actual, rollouts, text, tokenizer):
        return rollouts.float().mean()

    with pytest.raises(SettingError, match=r"flat_one: returned numbers of shape \[\]; expected \[R, n\]"):
        RefineTrainer(tiny_model(), arguments(), train_dataset=rows, reward=flat_one)
    with pytest.raises(SettingError, match=r"RefineTrainer: setting 'reward'.*'cosin' is no reward"):
        RefineTrainer(tiny_model(), arguments(), train_dataset=rows, reward="cosin")
