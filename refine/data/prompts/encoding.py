"""Prompts and answers as tokens: what evaluation reads and what post-training trains on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refine.data.prompts.prompt import answers_in
from refine.data.prompts.tasks import known_task
from refine.errors import DataError


def cut_middle(tokens: Sequence[int], length: int) -> list[int]:
    """`tokens`, cut in the middle to at most `length`, so that the instruction and the question stay."""
    if len(tokens) <= length:
        return list(tokens)
    head = length - length // 2
    return [*tokens[:head], *tokens[len(tokens) - length // 2 :]]


def reference_tokens(tokenizer: Any, prompt: str, tokens: Sequence[int], reference: str, between: str) -> list[int]:
    """The tokens of the answer `reference` after `prompt`, whose tokens are `tokens`; `between` stands between them.

    Prompt and answer are encoded together, so that the space before the answer is tokenised as in running text. If
    that changes the prompt's own tokens, the answer is encoded alone.
    """
    if prompt[-1].isspace():
        between = ""
    together = list(tokenizer(prompt + between + reference)["input_ids"])
    if together[: len(tokens)] == list(tokens) and len(together) > len(tokens):
        return together[len(tokens) :]
    return list(tokenizer(between + reference, add_special_tokens=False)["input_ids"])


def encode_with_answer(
    tokenizer: Any, prompt: str, answers: Sequence[str] | str, task: str | None = None, max_length: int | None = None
) -> tuple[list[int], list[int]]:
    """The tokens of `prompt` and of the answer to train on, which ends with the tokenizer's end token.

    `answers`: all accepted answers, or the only one. The first is trained; if `task` expects all of them, all are.
    `max_length`: tokens of both together; a longer prompt is cut in the middle.
    Raises DataError: the prompt or an answer is empty, or the answer alone fills `max_length`; SettingError: no such
    task.
    """
    answers = answers_in(answers)
    if not isinstance(prompt, str) or not prompt or not answers:
        raise DataError("expected a prompt, and in `answers` one text or a list of them, none empty")
    known = known_task(task) if task else None
    answer = answers[0] if known is None else known.reference(answers)
    between = " " if known is None else known.before_answer
    prompt_tokens = list(tokenizer(prompt)["input_ids"])
    answer_tokens = reference_tokens(tokenizer, prompt, prompt_tokens, answer, between)
    if tokenizer.eos_token_id is not None:
        answer_tokens.append(tokenizer.eos_token_id)
    if max_length is not None:
        if len(answer_tokens) >= max_length:
            raise DataError(f"the answer alone has {len(answer_tokens)} of max_length {max_length} tokens")
        prompt_tokens = cut_middle(prompt_tokens, max_length - len(answer_tokens))
    return prompt_tokens, answer_tokens
