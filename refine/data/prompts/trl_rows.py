"""Rows in TRL's forms as tokens: `prompt` and `completion` (texts, or messages), and `messages` (a conversation).

A message is a mapping with `role` and `content`. Messages are put into text by the tokenizer's own chat template; texts
are joined as they are. What TRL's SFTTrainer trains, these functions give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from refine.data.prompts.encoding import cut_middle
from refine.errors import DataError, reason

Messages = Sequence[Mapping[str, Any]]


def encode_completion(
    tokenizer: Any, prompt: str | Messages, completion: str | Messages, max_length: int | None = None
) -> tuple[list[int], list[int]]:
    """The tokens of `prompt`, and those of the `completion` to train on.

    Two texts are encoded together, without anything between them, and the end token follows. Two conversations are
    encoded by the chat template, which ends them. `max_length`: of both together; a longer prompt is cut in the middle.
    Raises DataError: an empty part, a text beside messages, no chat template, or a completion that fills `max_length`.
    """
    if isinstance(prompt, str) and isinstance(completion, str):
        if not prompt or not completion:
            raise DataError("expected a prompt and a completion, neither empty")
        before, together = list(tokenizer(prompt)["input_ids"]), list(tokenizer(prompt + completion)["input_ids"])
        alone = list(tokenizer(completion, add_special_tokens=False)["input_ids"])
        after = _rest(before, together, alone)
        if tokenizer.eos_token_id is not None:
            after.append(tokenizer.eos_token_id)
    else:
        before = encode_messages(tokenizer, prompt, add_generation_prompt=True)
        messages = [*_messages(prompt), *_messages(completion)]
        after = _rest(before, encode_messages(tokenizer, messages), None)
    if max_length is not None:
        if len(after) >= max_length:
            raise DataError(f"the completion alone has {len(after)} of max_length {max_length} tokens")
        before = cut_middle(before, max_length - len(after))
    return before, after


def encode_messages(tokenizer: Any, messages: Any, **options: Any) -> list[int]:
    """A conversation as tokens, by the tokenizer's chat template. Raises DataError: no messages, no chat template, or
    messages that the template refuses."""
    messages = _messages(messages)
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            "the rows are conversations, and the tokenizer has no chat template: set tokenizer.chat_template, or give "
            "texts in the place of messages"
        )
    try:
        return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options))
    except Exception as error:  # jinja's, and whatever a template raises
        raise DataError(f"the tokenizer's chat template refuses the messages ({reason(error)})") from None


def _messages(value: Any) -> list[Mapping[str, Any]]:
    """`value` if it is a list of messages."""
    if not isinstance(value, list | tuple) or not value:
        raise DataError(f"expected messages, a list that is not empty, not {reason(repr(value), 60)}")
    for message in value:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise DataError(f"expected messages with role and content, not {reason(repr(message), 60)}")
    return list(value)


def _rest(before: list[int], together: list[int], alone: list[int] | None) -> list[int]:
    """The tokens of `together` after those of `before`. If the two texts share a token, the second one `alone`."""
    if together[: len(before)] == before and len(together) > len(before):
        return together[len(before) :]
    if alone is None:
        raise DataError(
            "the chat template writes the prompt otherwise when a completion follows, so the completion's tokens "
            "cannot be told apart: use `messages`, or texts"
        )
    return alone
