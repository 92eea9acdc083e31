"""Prompts and answers as tokens. `reference_tokens` with a real tokenizer: tests/evaluation/test_answers.py."""

from __future__ import annotations

from typing import Any

import pytest

from refine.data.prompts.encoding import cut_middle, encode_with_answer, reference_tokens
from refine.errors import DataError, SettingError

END = 0


class Letters:
    """A tokenizer of one token per letter (its code), but "ab" is one token, 1."""

    eos_token_id: int | None = END

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1 if letter == "\x01" else ord(letter) for letter in text.replace("ab", "\x01")]}


def codes(text: str) -> list[int]:
    return [ord(letter) for letter in text]


@pytest.mark.parametrize(("length", "kept"), [(5, [0, 1, 2, 3, 4]), (4, [0, 1, 3, 4]), (3, [0, 1, 4]), (1, [0])])
def test_a_long_prompt_loses_its_middle(length, kept):
    assert cut_middle(range(5), length) == kept


def test_the_answer_follows_the_prompt_as_in_running_text():
    def after(prompt: str, answer: str, between: str = " ") -> list[int]:
        return reference_tokens(Letters(), prompt, Letters()(prompt)["input_ids"], answer, between)

    assert after("who", "me") == codes(" me")
    assert after("who ", "me") == codes("me"), "the prompt has the space already"
    assert after("a", "b", between="") == codes("b"), "encoded together, the prompt's last token would change"


@pytest.mark.parametrize(
    ("task", "answer"),
    [(None, " x"), ("factsqa", " x"), ("niah_single_1", " x, y"), ("lcc", "\nx")],
)
def test_the_task_decides_which_answers_are_trained_and_what_stands_before_them(task, answer):
    prompt, tokens = encode_with_answer(Letters(), "who", ["x", "y"], task)
    assert prompt == codes("who") and tokens == [*codes(answer), END]


def test_one_string_is_one_answer():
    assert encode_with_answer(Letters(), "who", "xy") == (codes("who"), [*codes(" xy"), END])


def test_a_tokenizer_without_an_end_token_ends_with_the_answer():
    tokenizer = Letters()
    tokenizer.eos_token_id = None
    assert encode_with_answer(tokenizer, "who", "x")[1] == codes(" x")


def test_prompt_and_answer_together_fit_max_length():
    prompt, answer = encode_with_answer(Letters(), "1234567", "x", None, 7)
    assert prompt == codes("1267") and len(prompt) + len(answer) == 7


@pytest.mark.parametrize(
    ("prompt", "answers", "message"),
    [
        ("", ["x"], "expected a prompt, and in `answers` one text or a list"),
        ("who", [], "none empty"),
        ("who", ["x", ""], "none empty"),
        ("who", [3], "none empty"),
        ("who", None, "none empty"),
        ("who", "xyz", "the answer alone has 5 of max_length 5 tokens"),
    ],
)
def test_what_cannot_be_trained_is_refused(prompt: str, answers: Any, message: str):
    with pytest.raises(DataError, match=message):
        encode_with_answer(Letters(), prompt, answers, None, 5)


def test_an_unknown_task_is_refused():
    with pytest.raises(SettingError, match=r"no task .factqa..*factsqa"):
        encode_with_answer(Letters(), "who", "x", "factqa")
