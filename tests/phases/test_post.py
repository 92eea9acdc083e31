"""Post-training: the loss counts answers only, prompts come first, and every sample counts once."""

from __future__ import annotations

import json

import pytest
import torch

from refine import settings as settings_module
from refine.data.prompts.prompt import Prompt, write_prompts
from refine.errors import DataError, SettingError
from refine.phases import post, start
from refine.phases.prepared_data import Prepared
from refine.training.dataset import PromptRows, collate
from refine.training.losses import answer_loss
from refine.training.order import NestedStream, Stream
from refine.training.trainer import RefineTrainer

PROMPTS = [Prompt("w1 w2 w3 " * 6 + f"w{n}", (f"w{n + 1}", "w5"), "factsqa", 64, 4) for n in range(7)]


@pytest.fixture
def tokenizer(prepared_folder):
    """Words by whitespace, with an end token."""
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(prepared_folder / "tokenizer")
    loaded.backend_tokenizer.pre_tokenizer = WhitespaceSplit()
    loaded.eos_token = "w63"
    return loaded


@pytest.fixture
def data() -> list[dict]:
    return [{"prompt": one.prompt, "answers": list(one.answers), "task": one.task} for one in PROMPTS]


def test_a_row_is_the_prompt_the_first_answer_and_the_end(data, tokenizer):
    row = PromptRows(data, tokenizer, None)[2]
    assert row.tokens.tolist() == [1, 2, 3] * 6 + [2, 3, 63] and row.prompt == 19


def test_too_long_a_prompt_loses_its_middle_and_keeps_its_question(data, tokenizer):
    row = PromptRows(data, tokenizer, 8)[4]
    assert row.tokens.tolist() == [1, 2, 3, 2, 3, 4, 5, 63]


def test_an_answer_that_leaves_no_room_is_refused(data, tokenizer):
    with pytest.raises(DataError, match="row 0: the answer alone has 2 of max_length 2 tokens"):
        PromptRows(data, tokenizer, 2)[0]


def test_a_lone_string_is_the_answer(data, tokenizer):
    """And not a list of its letters."""
    lone = [{**row, "answers": row["answers"][0]} for row in data]
    for one, other in zip(PromptRows(lone, tokenizer, None), PromptRows(data, tokenizer, None), strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()


@pytest.mark.parametrize("answers", [[], "", [""], [3], None])
def test_a_row_without_an_answer_is_named(tokenizer, answers):
    with pytest.raises(DataError, match=r"row 0: expected a prompt, and in `answers` one text or a list"):
        PromptRows([{"prompt": "w1", "answers": answers}], tokenizer, None)[0]


def test_batches_of_prompts_hold_no_answer_token(data, tokenizer):
    rows = PromptRows(data, tokenizer, None)
    batch = collate([rows[0], rows[1]], "prompts")
    assert batch["tokens"].shape == (2, 19) and batch["lengths"] is None
    assert collate([rows[0], rows[1]], "answers")["prompts"] == [19, 19]


def test_only_answer_tokens_count(tiny_model, data, tokenizer):
    """The loss is that of the model's own logits at the answers; changing the prompt's loss changes nothing."""
    model, rows = tiny_model(), PromptRows(data, tokenizer, None)
    batch = collate([rows[0], rows[3]], "answers")
    result = answer_loss(model, batch["tokens"], batch["lengths"], batch["prompts"], 4)
    log_probs = model(batch["tokens"]).logits.log_softmax(-1)
    wanted = (
        -sum(log_probs[row, place - 1, batch["tokens"][row, place]] for row in range(2) for place in range(19, 21)) / 4
    )
    assert result.answer_tokens == 4 and float(result.loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)


def test_answers_of_different_lengths_are_weighted_by_their_tokens(tiny_model, tokenizer):
    data = [{"prompt": "w1 w2", "answers": ["w3"]}, {"prompt": "w1 w2 w4 w5", "answers": ["w3 w6 w7 w8"]}]
    model, rows = tiny_model(), PromptRows(data, tokenizer, None)
    apart = [answer_loss(model, *_inputs(collate([row], "answers")), 1) for row in (rows[0], rows[1])]
    together = answer_loss(model, *_inputs(collate([rows[0], rows[1]], "answers")), 7)
    assert [one.answer_tokens for one in apart] == [2, 5]
    assert float(together.loss.detach()) == pytest.approx(sum(float(one.loss.detach()) for one in apart) / 7, rel=1e-5)


def _inputs(batch: dict) -> tuple:
    return batch["tokens"], batch["lengths"], batch["prompts"]


def test_nested_steps_are_the_paper_s_four_shares_of_prompts_then_all_answers():
    stream = NestedStream(Stream(rows=200, sequences=128, per_step=64, seed=1, kind="answers"), prompt_steps=4)
    assert stream.steps == 10
    kinds = [stream.step(step)[0] for step in range(10)]
    assert kinds == (["prompts"] * 4 + ["answers"]) * 2
    for first in (0, 5):
        shares = [stream.step(first + inner)[1] for inner in range(4)]
        assert [len(share) for share in shares] == [16] * 4
        assert [row for share in shares for row in share] == stream.step(first + 4)[1]


@pytest.mark.parametrize("left", [1, 2, 3, 5])
def test_a_small_last_batch_has_no_empty_step(left):
    stream = NestedStream(Stream(rows=100, sequences=8 + left, per_step=8, seed=1, kind="answers"), prompt_steps=4)
    steps = [stream.step(step) for step in range(stream.steps)]
    assert all(rows for _, rows in steps) and steps[-1][0] == "answers" and len(steps[-1][1]) == left
    prompts = [row for kind, rows in steps[5:] if kind == "prompts" for row in rows]
    assert prompts == steps[-1][1]


def test_the_arms_take_their_steps_and_log_both_losses(tiny_model, arguments, data, tokenizer):
    """Seven samples in batches of four: two batches, or ten optimizer steps with three prompts in the last batch."""
    found = {}
    for arm, steps, weight in (("sft", 0, 0.0), ("nested_sft", 2, 0.0), ("nested_refine", 2, 0.2)):
        args = arguments(
            max_steps=-1, num_train_epochs=1, prompt_steps=steps, objective={"positions": 2, "rollout_length": 2,
            "min_prefix": 4, "nsp_weight": weight, "reward": "hybrid"},
        )  # fmt: skip
        trainer = RefineTrainer(
            tiny_model(), args, train_dataset=data, eval_dataset=data[:3], processing_class=tokenizer
        )
        trainer.train()
        found[arm] = trainer
        metrics = trainer.evaluate()
        assert {"eval_answer_loss", "eval_answer_accuracy", "eval_loss", "eval_reward/hybrid/mean"} <= set(metrics)
    assert [found[arm].state.global_step for arm in found] == [2, 6, 6]
    rows = found["nested_refine"].state.log_history
    assert [("train/answer_loss" in row, "train/nsp_loss" in row) for row in rows[:6]] == [
        (False, True), (False, True), (True, False), (False, True), (False, True), (True, False),
    ]  # fmt: skip
    assert not any("train/nsp_loss" in row for row in found["nested_sft"].state.log_history)


def test_micro_batches_change_no_gradient_of_answers(tiny_model, arguments, data, tokenizer):
    ends = []
    for size in (4, 3, 1):
        args = arguments(max_steps=1, optim="sgd", per_device_train_batch_size=size)
        trainer = RefineTrainer(tiny_model(), args, train_dataset=data, processing_class=tokenizer)
        trainer.train()
        ends.append(torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()]))
    assert all(float((end - ends[0]).norm()) < 1e-6 for end in ends[1:])


def test_nested_steps_need_prompts_and_enough_samples(tiny_model, arguments, rows, data, tokenizer):
    with pytest.raises(SettingError, match="prompt and answers"):
        RefineTrainer(tiny_model(), arguments(prompt_steps=2), train_dataset=rows)
    with pytest.raises(SettingError, match="at most that many"):
        RefineTrainer(tiny_model(), arguments(prompt_steps=5), train_dataset=data, processing_class=tokenizer)
    with pytest.raises(DataError, match="give processing_class"):
        RefineTrainer(tiny_model(), arguments(), train_dataset=data)


@pytest.fixture
def post_train(params, prepared_folder, tmp_path):
    """Runs an arm of post-training into tmp_path/NAME."""
    short = (
        "training.post={steps: 2, prompt_steps: 2, sequences_per_step: 4, sequences_per_pass: 4, learning_rate: 0.01, "
    )
    short += "checkpoint_every: 2, evaluate_every: 3, objective: {positions: 2, rollout_length: 2, min_prefix: 4}}"
    values, data = settings_module.load(params, (short,)), Prepared(prepared_folder)
    start.plan(values, data).run(tmp_path / "start")
    file = write_prompts([Prompt("w1", ("w2",), "factsqa", 48, 4)] * 6, tmp_path / "prompts.parquet")

    def run(name: str, arm: str, held_out=(file,), callbacks=()) -> dict:
        model = str(tmp_path / "start" / "model")
        return post.plan(values, arm, model, data, [file], held_out).run(tmp_path / name, callbacks)

    return run


def test_a_post_trained_model_has_its_record_and_resumes_to_the_same_bits(post_train, tmp_path, weights, series):
    from transformers import TrainerCallback

    class Crash(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise RuntimeError("crash")

    record = post_train("whole", "nested_refine")
    assert record["phase"] == "post" and record["steps"] == 6 and "val/answer_loss" in record["metrics"]
    assert json.loads((tmp_path / "whole" / "result.json").read_text()) == record
    with pytest.raises(RuntimeError, match="crash"):
        post_train("broken", "nested_refine", callbacks=[Crash()])
    post_train("broken", "nested_refine")
    assert weights(tmp_path / "broken" / "model") == weights(tmp_path / "whole" / "model")
    assert series(tmp_path / "broken") == series(tmp_path / "whole")


def test_without_held_out_prompts_nothing_is_validated(post_train):
    record = post_train("plain", "sft", held_out=())
    assert record["steps"] == 2 and not any(name.startswith("val/") for name in record["metrics"])
