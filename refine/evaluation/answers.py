"""Answers to prompts: the model reads the prompt once, then generates greedily from the memory, token by token."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from refine.data.prompts.encoding import cut_middle, reference_tokens
from refine.data.prompts.prompt import Prompt
from refine.data.prompts.tasks import Task, known_task
from refine.errors import ModelError
from refine.evaluation.decoding import read_contexts, score_after, write_greedily
from refine.evaluation.record import Answer

if TYPE_CHECKING:
    from refine.models import FastWeightLanguageModel

Adapter = Callable[["FastWeightLanguageModel", Tensor], AbstractContextManager[Any]]
"""(model, prompt tokens [1, T]) -> a context with the model adapted to the prompt. Its end restores the weights."""


def answer(
    model: FastWeightLanguageModel,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    batch_size: int = 8,
    adapter: Adapter | None = None,
) -> list[Answer]:
    """One answer for each prompt, in their order. `batch_size` prompts form a pass; it changes no answer.

    A prompt of more than `length` tokens loses its middle. An answer ends at the tokenizer's end token, after the
    prompt's `answer_tokens`, or, in tasks that score only the first line, after that line. With an `adapter` the model
    answers prompts one by one, each inside the adapter's context. The model keeps its mode (train or eval).
    Raises ModelError if the tokenizer does not fit the model, SettingError for a task that does not exist.
    """
    check_fit(tokenizer, model.config.vocab_size)
    encoded = [_encode(tokenizer, prompt) for prompt in prompts]
    answers: dict[int, Answer] = {}
    training = model.training
    model.eval()
    try:
        for numbers in _passes(encoded, 1 if adapter else batch_size):
            batch = [encoded[n] for n in numbers]
            start = time.perf_counter()
            with adapter(model, batch[0].tokens[None].to(model.device)) if adapter else nullcontext():
                seconds = time.perf_counter() - start if adapter else 0.0
                model.eval()
                found = _answer_batch(model, tokenizer, batch)
            answers |= {n: replace(one, adapt_seconds=seconds) for n, one in zip(numbers, found, strict=True)}
    finally:
        model.train(training)
    return [answers[n] for n in range(len(prompts))]


def check_fit(tokenizer: Any, vocab_size: int) -> None:
    """Raise ModelError if the model's vocabulary is smaller than the tokenizer's, or larger by more than padding."""
    pieces = len(tokenizer)
    if pieces > vocab_size or pieces < 0.9 * vocab_size:
        raise ModelError(
            f"the tokenizer has {pieces} pieces and the model a vocabulary of {vocab_size}: they do not belong "
            "together; name the tokenizer that the model was trained with"
        )


@dataclass(frozen=True)
class _Encoded:
    """tokens, reference: int64 on the CPU."""

    prompt: Prompt
    task: Task
    tokens: Tensor
    cut: int
    reference: Tensor


def _encode(tokenizer: Any, prompt: Prompt) -> _Encoded:
    task = known_task(prompt.task)
    tokens = list(tokenizer(prompt.prompt)["input_ids"])
    if tokens[-1] == getattr(tokenizer, "eos_token_id", None):
        raise ModelError("the tokenizer ends every text with its end token, but a prompt must stay open: turn that off")
    reference = reference_tokens(tokenizer, prompt.prompt, tokens, task.reference(prompt.answers), task.before_answer)
    kept = cut_middle(tokens, prompt.length)
    return _Encoded(prompt, task, torch.tensor(kept), len(tokens) - len(kept), torch.tensor(reference))


def _passes(encoded: Sequence[_Encoded], batch_size: int) -> Iterator[list[int]]:
    """Indices of the prompts of each pass. Similar lengths go together, to reduce padding."""
    order = sorted(range(len(encoded)), key=lambda n: len(encoded[n].tokens)) if batch_size > 1 else range(len(encoded))
    for first in range(0, len(order), batch_size):
        yield list(order[first : first + batch_size])


@torch.no_grad()
def _answer_batch(model: FastWeightLanguageModel, tokenizer: Any, batch: Sequence[_Encoded]) -> list[Answer]:
    memory, last = read_contexts(model, [one.tokens for one in batch])
    log_probs = [float(logs.mean()) for logs, _ in score_after(model, memory, last, [one.reference for one in batch])]
    written = write_greedily(
        model,
        tokenizer,
        memory,
        last,
        [one.prompt.answer_tokens for one in batch],
        lambda row, text: batch[row].task.first_line and "\n" in text.lstrip("\n"),
    )
    return [
        Answer(tokenizer.decode(ids, skip_special_tokens=True), len(ids), len(one.tokens), one.cut, log_prob)
        for one, ids, log_prob in zip(batch, written, log_probs, strict=True)
    ]
