"""Prompts in the form of a tokenizer's chat template: the user asks, and the answer is the assistant's turn.

RULER's prompts end with the beginning of their answer ("Answer:"). It stays the last text of the prompt, as the first
words of the assistant's turn.
"""

from __future__ import annotations

from typing import Any

from refine.errors import DataError, reason

ASKED, ANSWERED = "<what is asked>", "<what is answered>"  # in the place of real texts, to take the template apart


class ChatForm:
    """Puts texts into the chat template of `tokenizer`. `before` and `after`: what stands around the user's text.

    Templates that can think (Qwen's) are asked for an answer without. The tokenizer's bos is not part of the text,
    because the tokenizer puts it there itself. `name` is for messages. Raises DataError: no chat template, one that
    refuses a question and its answer or writes them otherwise, or one that ends an answer with another token than the
    tokenizer's eos, so that no answer would end.
    """

    def __init__(self, tokenizer: Any, name: str = "the tokenizer") -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise DataError(
                f"{name} has no chat template: leave out chat (as for a base model), or give it one (chat_template)"
            )
        asked, answered = {"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}
        parts = _rendered(tokenizer, name, [asked], True).split(ASKED)
        ending = _rendered(tokenizer, name, [asked, answered], False).partition(ANSWERED)[2]
        if len(parts) != 2:
            raise DataError(f"{name}: its chat template does not write the user's text once: use another template")
        eos = tokenizer.eos_token
        if eos is None or not ending.startswith(eos):
            raise DataError(
                f"{name}: its chat template ends an answer with {reason(repr(ending), 40)}, and its eos_token is "
                f"{eos!r}: make the token that ends an answer its eos_token"
            )
        self.before, self.after = parts[0].removeprefix(tokenizer.bos_token or ""), parts[1]

    def __call__(self, prompt: str, answer_begins: str | None = None) -> str:
        """`prompt` as the user's turn, and the beginning of the assistant's. What follows the last `answer_begins` in
        it (that included) begins the answer."""
        cut = len(prompt) if answer_begins is None else prompt.rindex(answer_begins)
        return self.before + prompt[:cut].strip() + self.after + prompt[cut:]

    def holds(self, prompt: str) -> bool:
        """Whether `prompt` is in this form."""
        return prompt.startswith(self.before) and self.after in prompt


def _rendered(tokenizer: Any, name: str, messages: list[dict[str, str]], generation: bool) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generation, enable_thinking=False
            )
        )
    except Exception as error:  # jinja's, and whatever a template raises
        raise DataError(f"{name}: its chat template refuses a question and its answer ({reason(error)})") from None
