"""Prompts and answers as tokens: what evaluation reads and what post-training trains on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def cut_middle(tokens: Sequence[int], length: int) -> list[int]:
    """`tokens`, or their first and last halves where there are more than `length`: instruction and question survive."""
    if len(tokens) <= length:
        return list(tokens)
    head = length - length // 2
    return [*tokens[:head], *tokens[len(tokens) - length // 2 :]]


def reference_tokens(tokenizer: Any, prompt: str, tokens: Sequence[int], reference: str, between: str) -> list[int]:
    """The tokens of `reference` as they follow `prompt` (whose tokens are given).

    Encoded together, so that the space before the answer falls as in running text; where the border token would change,
    the answer is encoded by itself.
    """
    if prompt[-1].isspace():
        between = ""
    together = list(tokenizer(prompt + between + reference)["input_ids"])
    if together[: len(tokens)] == list(tokens) and len(together) > len(tokens):
        return together[len(tokens) :]
    return list(tokenizer(between + reference, add_special_tokens=False)["input_ids"])
