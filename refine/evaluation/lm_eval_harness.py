"""lm-eval's tasks (EleutherAI's evaluation harness) for our models, which score and generate from the memory.

The model reads each context once, for any number of continuations. No context is cut: a memory reads any
length. Needs the extra `harness`.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from refine.errors import DataError, SettingError, nearest, reason
from refine.evaluation.decoding import read_contexts, score_after, write_greedily
from refine.evaluation.record import HarnessScore

if TYPE_CHECKING:
    from refine.models import FastWeightLanguageModel

NOT_SCORED = -1.0  # the score of RULER's tasks at lengths other than the wanted ones
TOKENS = 256  # to generate if a task does not say how many; the default of lm-eval's own model class
LENGTHS = (4096,)


def check_harness(
    tasks: Sequence[str], tokenizer: Any = None, lengths: Sequence[int] | None = None, include: str | Path | None = None
) -> Any:
    """lm-eval's task manager, or None for no tasks; arguments as in `evaluate_harness`.

    Raises SettingError if lm-eval is not installed or a task does not exist (naming the nearest).
    """
    if not tasks:
        return None
    if importlib.util.find_spec("lm_eval") is None:
        raise SettingError("lm-eval is not installed: pip install 'refine-fast-weights[harness]'")
    name, wanted = getattr(tokenizer, "name_or_path", ""), tuple(lengths or LENGTHS)
    if include is not None:
        own = _manager(str(include), False, name, wanted)
        if set(tasks) <= set(own.all_tasks):
            return own  # lm-eval's own thousands of tasks take seconds to list
    manager = _manager(None if include is None else str(include), True, name, wanted)
    for task in tasks:
        if task not in manager.all_tasks:
            raise SettingError(f"lm-eval has no task {task!r}{nearest(task, manager.all_tasks)}")
    return manager


@cache
def _manager(include: str | None, defaults: bool, tokenizer: str, lengths: tuple[int, ...]) -> Any:
    from lm_eval.tasks import TaskManager

    # for tasks that make their own prompts
    metadata = {"tokenizer": tokenizer, "max_seq_lengths": list(lengths)}
    return TaskManager(include_path=include, include_defaults=defaults, metadata=metadata)


def evaluate_harness(
    model: FastWeightLanguageModel,
    tokenizer: Any,
    tasks: Sequence[str],
    batch_size: int = 8,
    samples: int | None = None,
    lengths: Sequence[int] | None = None,
    include: str | Path | None = None,
) -> list[HarnessScore]:
    """Every metric that lm-eval gives for `tasks`, in its order.

    samples: at most so many documents of each task. lengths: of RULER's tasks [tokens]. include: a folder with further
    tasks as YAML files. Raises DataError if lm-eval cannot run a task, for example without its data.
    """
    manager = check_harness(tasks, tokenizer, lengths, include)
    if manager is None:
        return []
    import lm_eval

    try:
        found = lm_eval.simple_evaluate(
            language_model(model, tokenizer, batch_size),
            tasks=list(tasks),
            limit=samples,
            task_manager=manager,
            bootstrap_iters=100,
            log_samples=False,
        )
    except (OSError, ConnectionError, ValueError, RuntimeError) as error:
        raise DataError(f"lm-eval cannot run {', '.join(tasks)}: {reason(error)}") from error
    assert found is not None  # lm-eval returns None on the other ranks of a distributed run
    return list(_scores(found))


def _scores(found: Mapping[str, Any]) -> Iterator[HarnessScore]:
    """Every score. MLflow refuses some characters that lm-eval allows in names: they become "_"."""
    names: set[tuple[str, str]] = set()
    for task, values in found["results"].items():
        samples = found["n-samples"].get(task, {}).get("effective", 0)
        for name, value in values.items():
            metric, _, kind = name.partition(",")
            if metric.endswith("_stderr") or not isinstance(value, int | float) or value == NOT_SCORED or not kind:
                continue
            error = values.get(f"{metric}_stderr,{kind}")
            spread = float(error) if isinstance(error, int | float) and math.isfinite(error) else None
            shown = _tracked(task), _tracked(metric if kind == "none" else f"{metric}_{kind}")
            if shown in names:  # two names that differ only in such characters
                shown = shown[0], f"{shown[1]}_{len(names)}"
            names.add(shown)
            yield HarnessScore(*shown, float(value), spread, samples)


def _tracked(name: str) -> str:
    """`name` in the characters that MLflow takes everywhere."""
    return re.sub(r"[^\w\-. ]", "_", name, flags=re.ASCII).strip(".") or "_"


def language_model(model: FastWeightLanguageModel, tokenizer: Any, batch_size: int = 8) -> Any:
    """`model` as lm-eval's language model."""
    from lm_eval.api.model import TemplateLM

    class MemoryLanguageModel(TemplateLM):
        """Reads contexts into a memory; scores continuations and generates after it."""

        def __init__(self) -> None:
            super().__init__()
            self.tokenizer = tokenizer
            self.batch_size = batch_size
            self._device = model.device
            model.eval()

        @property
        def eot_token_id(self) -> int:
            return tokenizer.eos_token_id

        @property
        def prefix_token_id(self) -> int:
            return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id

        @property
        def tokenizer_name(self) -> str:
            return tokenizer.name_or_path.replace("/", "__")

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            special = add_special_tokens is not False and not string.startswith(tokenizer.bos_token or "\0")
            return tokenizer(string, add_special_tokens=special)["input_ids"]

        def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
            return score_continuations(model, [(context, after) for _, context, after in requests], batch_size)

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            pairs = [([self.prefix_token_id], self.tok_encode(r.args[0], False)) for r in requests]
            return [log_prob for log_prob, _ in score_continuations(model, pairs, batch_size)]

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            asked = [(self.tok_encode(r.args[0]), *_generation(r.args[1])) for r in requests]
            return write_until(model, tokenizer, asked, batch_size)

    return MemoryLanguageModel()


def _generation(options: Mapping[str, Any]) -> tuple[int, list[str]]:
    """(tokens to generate, texts that end an answer)."""
    if options.get("do_sample") and options.get("temperature", 1.0) > 0:
        raise SettingError("a task wants sampled answers, but evaluation here is greedy: set do_sample to false")
    until = options.get("until") or []
    until = [until] if isinstance(until, str) else list(until)
    tokens = next(
        (options[name] for name in ("max_gen_toks", "max_new_tokens", "max_tokens") if name in options), TOKENS
    )
    return int(tokens), [text for text in until if text]


def score_continuations(
    model: FastWeightLanguageModel, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], batch_size: int
) -> list[tuple[float, bool]]:
    """(log-probability [nats], whether each token was the likeliest) of each continuation after its context, in order.

    A pass reads `batch_size` contexts. Continuations of the same context share one read.
    """
    by_context: dict[tuple[int, ...], list[int]] = {}
    for number, (context, _) in enumerate(pairs):
        by_context.setdefault(tuple(context), []).append(number)
    scores: dict[int, tuple[float, bool]] = {}
    contexts = sorted(by_context, key=len)
    for first in range(0, len(contexts), batch_size):
        batch = contexts[first : first + batch_size]
        memory, last = read_contexts(model, batch)
        rows = [row for row, context in enumerate(batch) for _ in by_context[context]]
        numbers = [number for context in batch for number in by_context[context]]
        found = score_after(model, memory.select(rows), last[rows], [pairs[number][1] for number in numbers])
        scores |= {n: (float(logs.sum()), bool(hits.all())) for n, (logs, hits) in zip(numbers, found, strict=True)}
    return [scores[number] for number in range(len(pairs))]


@torch.no_grad()
def write_until(
    model: FastWeightLanguageModel,
    tokenizer: Any,
    requests: Sequence[tuple[Sequence[int], int, Sequence[str]]],
    batch_size: int,
) -> list[str]:
    """The greedy answer to each (context, tokens to generate, texts that end it), up to the first such text."""
    order = sorted(range(len(requests)), key=lambda number: len(requests[number][0]))
    answers: dict[int, str] = {}
    for first in range(0, len(order), batch_size):
        numbers = order[first : first + batch_size]
        ends = [requests[number][2] for number in numbers]
        memory, last = read_contexts(model, [requests[number][0] for number in numbers])
        limits = [requests[number][1] for number in numbers]

        def ended(row: int, text: str, ends: Sequence[Sequence[str]] = ends) -> bool:
            return any(end in text for end in ends[row])

        written = write_greedily(model, tokenizer, memory, last, limits, ended)
        for number, ids, stops in zip(numbers, written, ends, strict=True):
            text = tokenizer.decode(ids, skip_special_tokens=True)
            answers[number] = text[: min([text.find(end) for end in stops if end in text], default=len(text))]
    return [answers[number] for number in range(len(requests))]
