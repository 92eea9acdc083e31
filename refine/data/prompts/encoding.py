"""Prompts and answers as tokens: what evaluation reads and what post-training trains on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


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
