"""Answers are greedy, come from the memory, are the same in any batch, and end and are cut as documented.

Also of refine/evaluation/decoding.py, by which answers are generated.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from refine.data.prompts.encoding import cut_middle, reference_tokens
from refine.data.prompts.prompt import Prompt
from refine.errors import ModelError, SettingError
from refine.evaluation import decoding
from refine.evaluation.answers import answer

WORDS = ["the", "king", "ruled", "old", "ships", "green", "sun", "hidden", "blue", "sky", "magic", "text", "number"]


def prompts(count: int, task: str = "factsqa", answer_tokens: int = 12) -> list[Prompt]:
    """Prompts of very different lengths."""
    return [
        Prompt(" ".join(WORDS[i % 7 : i % 7 + 2 + i % 9]), (WORDS[-1 - i % 5],), task, 512, answer_tokens)
        for i in range(count)
    ]


def by_rereading(model, tokenizer, prompt: str, tokens: int) -> list[int]:
    """Greedy tokens from a full forward for each token, without a memory."""
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    for _ in range(tokens):
        logits = model(torch.tensor([ids])).logits[0, -1]
        ids = [*ids, int(logits.argmax())]
        if ids[-1] == tokenizer.eos_token_id:
            return ids[start:-1]
    return ids[start:]


def test_answers_are_those_of_reading_everything_again_for_each_token(model, tokenizer):
    asked = prompts(5, answer_tokens=40)  # more tokens than are written before finished answers leave the batch
    for prompt, found in zip(asked, answer(model, tokenizer, asked), strict=True):
        ids = by_rereading(model, tokenizer, prompt.prompt, 40)
        assert found.tokens == len(ids) and found.text == tokenizer.decode(ids, skip_special_tokens=True)
        assert found.prompt_tokens == len(tokenizer(prompt.prompt)["input_ids"]) and found.cut == 0


@pytest.mark.parametrize("batch_size", [2, 4, 64])
def test_a_batch_of_any_size_and_unequal_lengths_answers_as_each_prompt_alone(batch_size, model, tokenizer):
    asked = prompts(11, answer_tokens=20)
    asked[3] = replace(asked[3], answer_tokens=3)
    alone = answer(model, tokenizer, asked, batch_size=1)
    together = answer(model, tokenizer, asked, batch_size=batch_size)
    assert [one.text for one in together] == [one.text for one in alone]
    assert [one.tokens for one in together] == [one.tokens for one in alone] and alone[3].tokens <= 3
    assert [one.log_prob for one in together] == pytest.approx([one.log_prob for one in alone], rel=1e-4)


def test_long_prompts_are_read_in_several_passes_and_answered_together_all_the_same(model, tokenizer, monkeypatch):
    asked = prompts(11, answer_tokens=20)
    expected = answer(model, tokenizer, asked)
    contexts = []
    own = model.read

    def read(tokens, memory=None, **more):
        if memory is None:
            contexts.append(tokens.shape)
        return own(tokens, memory, **more)

    monkeypatch.setitem(decoding.TOKENS_OF_A_PASS, "cpu", 60)
    monkeypatch.setattr(model, "read", read)
    found = answer(model, tokenizer, asked, batch_size=11)
    assert [one.text for one in found] == [one.text for one in expected]
    assert len(contexts) > 2 and max(rows * width for rows, width in contexts) <= 60
    assert sum(rows for rows, _ in contexts) == 11


def test_every_prompt_is_answered_and_in_order(model, tokenizer):
    asked = prompts(7)
    backwards = answer(model, tokenizer, asked[::-1], batch_size=3)[::-1]
    assert [one.text for one in answer(model, tokenizer, asked, batch_size=3)] == [one.text for one in backwards]
    assert answer(model, tokenizer, []) == []


def test_the_log_probability_is_that_of_the_reference_after_the_prompt(model, tokenizer):
    prompt = Prompt("The magic number is", ("1234567", "7654321"), "niah_multivalue", 512, 4)
    [found] = answer(model, tokenizer, [prompt])
    ids = tokenizer("The magic number is 1234567, 7654321")["input_ids"]
    start = len(tokenizer("The magic number is")["input_ids"])
    log_probs = model(torch.tensor([ids])).logits[0].detach().log_softmax(-1)
    expected = [float(log_probs[t - 1, ids[t]]) for t in range(start, len(ids))]
    assert found.log_prob == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_reference_tokens_and_prompt_tokens_spell_prompt_and_answer(tokenizer):
    for prompt, between, reference, text in [
        ("Who?", " ", "the king", "Who? the king"),
        ("Summary: ", " ", "the king", "Summary: the king"),  # a prompt that ends with a space needs no other
        ("code:", "\n", "\t\tx = 1", "code:\n\t\tx = 1"),
        ("gree", "", "n", "green"),  # encoded together the border would change: the answer is encoded by itself
    ]:
        ids = tokenizer(prompt)["input_ids"]
        after = reference_tokens(tokenizer, prompt, ids, reference, between)
        assert tokenizer.decode(ids + after) == text and after


def test_a_prompt_that_is_too_long_loses_its_middle_and_is_counted(model, tokenizer):
    long = Prompt("the king ruled " * 40, ("x",), "factsqa", 21, 6)
    ids = tokenizer(long.prompt)["input_ids"]
    [found] = answer(model, tokenizer, [long])
    assert found.prompt_tokens == 21 and found.cut == len(ids) - 21 > 0
    kept = ids[:11] + ids[-10:]
    assert cut_middle(ids, 21) == kept
    reading = model.read(torch.tensor([kept]))
    written = model.continue_greedily(reading.memory, reading.hidden[:, -1], 6, [tokenizer.eos_token_id])
    assert found.text == tokenizer.decode(written.tokens[0, : written.lengths[0]], skip_special_tokens=True)


@contextmanager
def saying(model, tokens: list[int]):
    """Make the model generate `tokens`, one after the other, whatever it reads."""
    place = {"next": 0}

    def logits(hidden):
        scores = torch.zeros(*hidden.shape[:-1], model.config.vocab_size)
        if hidden.shape[0] == 1 and hidden.ndim == 2:  # one row's next token
            scores[..., tokens[min(place["next"], len(tokens) - 1)]] = 9.0
            place["next"] += 1
        return scores

    own, model.logits = model.logits, logits
    try:
        yield
    finally:
        model.logits = own


def say(model, tokenizer, text: str, task: str, answer_tokens: int = 60) -> str:
    # a reference of two tokens is scored on two rows at once, which tells it apart from the row of the answer
    ids = tokenizer(text)["input_ids"]
    prompt = Prompt("Type:", ("zq",), task, 512, answer_tokens)
    assert len(tokenizer(" zq")["input_ids"]) > 1
    with saying(model, ids):
        return answer(model, tokenizer, [prompt])[0]


def test_a_first_line_task_ends_with_its_first_line_and_others_go_on(model, tokenizer):
    text = "\n\nPrice\nQuestion: Who ruled the old ships and the blue sky?\nType: again and again and again and again"
    line = say(model, tokenizer, text, "trec")
    assert line.text.startswith("\n\nPrice\n") and line.tokens <= 16
    other = say(model, tokenizer, text, "factsqa")
    assert text.startswith(other.text) and other.tokens == 60


def test_the_end_token_ends_an_answer_and_is_not_part_of_it(model, tokenizer):
    found = say(model, tokenizer, "the king</s> and more", "factsqa")
    assert found.text == "the king" and found.tokens == len(tokenizer("the king")["input_ids"])


def test_an_adapter_sees_each_prompt_alone_and_what_it_changes_lasts_for_that_answer_only(make_model, tokenizer):
    asked = prompts(5)
    seen = []

    @contextmanager
    def adapter(model, tokens):
        seen.append(tokens[0].tolist())
        before = model.lm_head.weight.detach().clone()
        logits = model.logits(model.read(tokens).hidden)  # with gradient
        torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:]).backward()
        with torch.no_grad():
            model.lm_head.weight -= 1.0 * model.lm_head.weight.grad
        yield
        with torch.no_grad():
            model.lm_head.weight.copy_(before)
        model.zero_grad()

    def by_hand(prompt):
        model = make_model()
        with adapter(model, torch.tensor([tokenizer(prompt.prompt)["input_ids"]])):
            return answer(model, tokenizer, [prompt])[0].text

    model = make_model()
    plain = answer(model, tokenizer, asked)
    expected = [by_hand(prompt) for prompt in asked]
    seen.clear()
    adapted = answer(model, tokenizer, asked, batch_size=4, adapter=adapter)
    assert seen == [tokenizer(p.prompt)["input_ids"] for p in asked]
    assert [one.text for one in adapted] == expected != [one.text for one in plain]
    assert all(one.adapt_seconds > 0 for one in adapted)
    assert answer(model, tokenizer, asked) == plain


def test_the_model_s_mode_is_left_as_it_was_and_nothing_has_gradients(model, tokenizer):
    model.train()
    answer(model, tokenizer, prompts(2))
    assert model.training and all(p.grad is None for p in model.parameters())


def test_a_tokenizer_of_another_vocabulary_is_refused(make_model, tokenizer):
    with pytest.raises(ModelError, match="the tokenizer has 320 pieces and the model a vocabulary of 300"):
        answer(make_model(vocab_size=300), tokenizer, prompts(1))
    with pytest.raises(ModelError, match="do not belong together"):
        answer(make_model(vocab_size=640), tokenizer, prompts(1))
    assert answer(make_model(vocab_size=336), tokenizer, prompts(1))  # padded to a round number


def test_a_task_that_does_not_exist_is_refused_by_name(model, tokenizer):
    with pytest.raises(SettingError, match=r"no task 'ruler_squadq' \(did you mean 'ruler_squadqa'\?\)"):
        answer(model, tokenizer, [replace(prompts(1)[0], task="ruler_squadq")])
