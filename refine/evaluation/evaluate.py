"""Evaluates a model on documents, prompts and lm-eval's tasks, in one call."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refine import paths
from refine.data.prompts.prompt import Prompt
from refine.data.prompts.tasks import known_task
from refine.data.tokenizer import by_our_rule, load_tokenizer
from refine.errors import ModelError, reason
from refine.evaluation import next_token
from refine.evaluation.answers import Adapter, Answer, answer, check_fit
from refine.evaluation.inputs import Inputs
from refine.evaluation.lm_eval_harness import evaluate_harness
from refine.evaluation.record import Evaluation, TaskScore
from refine.evaluation.scorers import scorer_of
from refine.system.exhausted import out_of_memory_in_one_line
from refine.system.files import write_text

if TYPE_CHECKING:
    from refine.models import FastWeightLanguageModel

Progress = Callable[[str], None]
SMALLER_PASSES = "lower batch_size, which changes no score (--batch-size, evaluation.batch_size), or the lengths"


def evaluate_model(
    model: str | Path | FastWeightLanguageModel,
    inputs: Inputs,
    tokenizer: Any = None,
    batch_size: int = 8,
    adapter: Adapter | None = None,
    device: str | None = None,
    name: str | None = None,
    answers_file: str | Path | None = None,
    harness: Sequence[str] = (),
    harness_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Every score of a model, with counts and intervals.

    model: a model, a checkpoint folder or a hub name. tokenizer: by default the one saved with the model. batch_size:
    sequences or prompts per pass; changes no score. adapter: adapts the model to each prompt before it answers
    (test-time training). answers_file: gets each answer as a line of JSON, after all prompts. harness: lm-eval's tasks.
    harness_options: samples, lengths and include of `evaluate_harness`. progress: called with a line about each step.
    Raises ModelError: the tokenizer does not fit (found before the weights are loaded), a text is longer than rotary
    positions allow (found before any is scored), or a score is not finite.
    """
    start = time.perf_counter()
    name = name or (str(model) if isinstance(model, str | Path) else type(model).__name__)
    loaded, tokenizer = _load(model, tokenizer, bool(inputs.prompts or harness), device)
    _refuse_too_long(name, loaded, inputs)
    report = progress or (lambda _: None)
    documents: dict[str, next_token.NextTokenScore] = {}
    for which, sequences in inputs.documents.items():
        report(f"{which}: next tokens of {len(sequences)} sequences")
        with out_of_memory_in_one_line(ModelError, f"with {which} in passes of {batch_size}", SMALLER_PASSES):
            documents[which] = next_token.evaluate(loaded, sequences, batch_size)
        _refuse_non_finite(name, f"{which}/loss", documents[which].sequence_losses)
    tasks, lines = [], []
    for (task, length), prompts in inputs.prompts.items():
        report(f"{task} at {length}: {len(prompts)} prompts")
        with out_of_memory_in_one_line(
            ModelError, f"with {task} at {length} in passes of {batch_size}", SMALLER_PASSES
        ):
            answers = answer(loaded, tokenizer, prompts, batch_size, adapter)
        scores = _scores(task, prompts, answers)
        _refuse_non_finite(name, f"{task} at {length}", [*scores, *(one.log_prob for one in answers)])
        tasks.append(TaskScore.of(task, length, scores, answers))
        lines += _answer_lines(task, length, prompts, answers, scores)
    if answers_file is not None:
        write_text(
            answers_file, "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
        )
    if harness:
        report(f"lm-eval: {', '.join(harness)}")
    with out_of_memory_in_one_line(ModelError, f"with lm-eval's tasks in passes of {batch_size}", SMALLER_PASSES):
        measured = evaluate_harness(loaded, tokenizer, harness, batch_size, **(harness_options or {}))
    for one in measured:
        _refuse_non_finite(name, f"lm-eval {one.task} {one.metric}", [one.value])
    seconds = time.perf_counter() - start
    settings = {"batch_size": batch_size, "scored_on": inputs.fingerprint()}
    return Evaluation(name, documents, tuple(tasks), tuple(measured), seconds, settings)


def model_tokenizer(model: str | Path) -> Any:
    """The tokenizer saved with a model, or any that `load_tokenizer` finds; raises as that does. ModelError: `model` is
    a folder of adapters."""
    import refine.models  # noqa: F401 - transformers looks for the model's type, even for the tokenizer alone
    from refine.models.weights import refuse_adapters

    refuse_adapters(paths.model(model))
    return load_tokenizer(model)


def check_model(model: str | Path, tokenizer: Any, revision: str | None = None) -> None:
    """Raise ModelError, without loading weights, if the model has no config or the tokenizer does not fit it."""
    from transformers import AutoConfig, PreTrainedConfig

    from refine.models.configuration import FastWeightConfig
    from refine.models.loading import MODELS, config_of  # also registers the model types
    from refine.models.weights import refuse_adapters

    refuse_adapters(paths.model(model))
    place = str(paths.model(model))
    try:
        config: Any = AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=False)
        if config.model_type in MODELS and not isinstance(config, FastWeightConfig):  # transformers has this type, too
            config = config_of(PreTrainedConfig.get_config_dict(place, revision=revision)[0], str(model))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{model}: neither a checkpoint folder nor a model that the hub gives ({reason(error)})"
        ) from None
    if isinstance(config, FastWeightConfig):
        config.refuse_unsupported()
    if not isinstance(size := getattr(config, "vocab_size", None), int):
        raise ModelError(f"{model}: config.json has no whole number as vocab_size")
    check_fit(tokenizer, size)


def _load(
    model: str | Path | FastWeightLanguageModel, tokenizer: Any, answers_wanted: bool, device: str | None
) -> tuple[FastWeightLanguageModel, Any]:
    """(model, tokenizer). The tokenizer is loaded only if answers are wanted."""
    from refine.models import load_for_reading

    if not isinstance(model, str | Path):
        if answers_wanted and tokenizer is None:
            raise ModelError("answering prompts needs a tokenizer: pass one beside the model")
        return model, by_our_rule(tokenizer, "tokenizer") if answers_wanted else tokenizer
    if answers_wanted:
        tokenizer = model_tokenizer(model) if tokenizer is None else by_our_rule(tokenizer, "tokenizer")
        check_model(model, tokenizer)
    with out_of_memory_in_one_line(
        ModelError, f"while {model} is loaded", "take a smaller model, or a device with more memory"
    ):
        return load_for_reading(model, device), tokenizer


def _refuse_too_long(name: str, model: FastWeightLanguageModel, inputs: Inputs) -> None:
    limit = model.config.position_limit()
    if limit is None:
        return
    lengths = {which: max(map(len, next_token.token_rows(rows))) for which, rows in inputs.documents.items()}
    for (task, length), prompts in inputs.prompts.items():
        known = [one.prompt_tokens + one.answer_tokens for one in prompts if one.prompt_tokens is not None]
        lengths[f"{task} at {length}"] = max(known, default=0)
    for which, longest in lengths.items():
        if longest > limit:
            raise ModelError(
                f"{name}: {which} has a text of {longest} tokens, and the model's rotary positions allow {limit} "
                "(max_position_embeddings): leave out this length, or take another model"
            )


def _refuse_non_finite(model: str, what: str, scores: Sequence[float]) -> None:
    for number, score in enumerate(scores):
        if not math.isfinite(score):
            raise ModelError(
                f"{model}: the score of {what} is {score} (value {number}), so nothing is recorded: look whether the "
                "model's weights are sound, or lower training.test_time.learning_rate if it adapts to prompts"
            )


def _scores(task: str, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> list[float]:
    scorer = scorer_of(known_task(task))
    return [scorer(one.text, prompt.answers) for one, prompt in zip(answers, prompts, strict=True)]


def _answer_lines(
    task: str, length: int, prompts: Sequence[Prompt], answers: Sequence[Answer], scores: Sequence[float]
) -> list[dict[str, Any]]:
    return [
        {
            "task": task,
            "length": length,
            "sample": n,
            "answer": one.text,
            "accepted": list(prompt.answers),
            "score": score,
            "log_prob": one.log_prob,
            "prompt_tokens": one.prompt_tokens,
            "cut": one.cut,
        }
        for n, (prompt, one, score) in enumerate(zip(prompts, answers, scores, strict=True))
    ]
