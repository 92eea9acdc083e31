"""Prompts with answers as rows of tokens: what post-training trains on.

A row is read as evaluation reads it: the prompt's tokens, then the tokens of the answer as they follow it in running
text, then the end token. Too long a prompt loses its middle, so that instruction and question stay (METHOD).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refine.data.prompts.encoding import cut_middle, reference_tokens
from refine.data.prompts.tasks import known_task
from refine.errors import DataError
from refine.training.order import STAND_IN
from refine.training.sequences import Row, Sequences


class Exchanges(Sequences):
    """Rows of `data` with columns `prompt` and `answers` (all accepted ones, or a lone string; the first is trained,
    or, where `task` is one that expects them all, all). `max_length`: tokens of prompt and answer together."""

    exchanges = True

    def __init__(self, data: Any, tokenizer: Any, max_length: int | None) -> None:
        if tokenizer is None:
            raise DataError("the data set has prompts: give processing_class, the tokenizer that reads them")
        self.data, self.tokenizer, self.max_length = data, tokenizer, max_length

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Row:
        real = 0 if index == STAND_IN else index
        prompt, answer = self._encoded(real)
        tokens = np.asarray([*prompt, *answer], dtype=np.int64)
        return Row(tokens, (len(tokens),), real, (f"prompt {real}",), len(prompt), counted=index != STAND_IN)

    def _encoded(self, index: int) -> tuple[list[int], list[int]]:
        """Tokens of prompt and answer. Raises DataError naming the row where one is empty."""
        row = self.data[index]
        answers = [row["answers"]] if isinstance(row["answers"], str) else row["answers"]
        if not row["prompt"] or not answers or not all(isinstance(one, str) and one for one in answers):
            raise DataError(f"row {index}: expected a prompt, and in `answers` one text or a list of them, none empty")
        prompt = list(self.tokenizer(row["prompt"])["input_ids"])
        task = known_task(row["task"]) if row.get("task") else None
        answer = answers[0] if task is None else task.reference(answers)
        between = " " if task is None else task.before_answer
        tokens = list(reference_tokens(self.tokenizer, row["prompt"], prompt, answer, between))
        if (end := self.tokenizer.eos_token_id) is not None:
            tokens.append(end)
        if self.max_length is not None:
            if len(tokens) >= self.max_length:
                raise DataError(
                    f"row {index}: its answer alone has {len(tokens)} of max_length {self.max_length} tokens"
                )
            prompt = cut_middle(prompt, self.max_length - len(tokens))
        return prompt, tokens
