"""A registered version as MLflow loads models: `mlflow.pyfunc.load_model`, `mlflow models serve`,
`mlflow.models.predict`.

MLflow reads MLmodel in the version's folder, imports this module and calls `_load_pyfunc`. Nothing is pickled.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import refine
from refine.errors import DataError, ModelError, reason
from refine.system.quiet import quiet_logger

if TYPE_CHECKING:
    import pandas

PROMPT, TOKENS, TEXT = "prompt", "tokens", "text"
EXAMPLE = "To be, or not to be, that is the"
DEFAULTS: dict[str, Any] = {"max_tokens": 32, "temperature": 0.0, "seed": 1}
MOST_TOKENS = 10**6
EXPECTED = f"expected rows with a column `{PROMPT}` (text) or `{TOKENS}` (a list of token ids)"


class TextModel:
    """What `mlflow.pyfunc.load_model` wraps."""

    def __init__(self, folder: str) -> None:
        import torch

        from refine.data.tokenizer import load_tokenizer
        from refine.models import from_pretrained

        self.tokenizer = load_tokenizer(folder)
        model: Any = from_pretrained(folder)
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def predict(self, model_input: pandas.DataFrame, params: Mapping[str, Any] | None = None) -> pandas.DataFrame:
        """The text that the model writes after each row's prompt: a column `text`, in the order of the rows.

        model_input: a column `prompt` (text) or `tokens` (lists of token ids), a row for each prompt. params:
        max_tokens; temperature, 0 for the likeliest tokens; seed of the draws of the first row (the next row has
        seed + 1). Raises DataError: no such column, no prompt, a token outside the vocabulary; ModelError: params.
        """
        import pandas

        wanted = {**DEFAULTS, **(params or {})}
        contexts = [self._tokens(row, number) for number, row in enumerate(_rows(model_input))]
        return pandas.DataFrame({TEXT: self._written(contexts, **wanted)}, dtype="object")

    def _tokens(self, row: Mapping[str, Any], number: int) -> list[int]:
        prompt, tokens = (row.get(name) for name in (PROMPT, TOKENS))
        if isinstance(prompt, str) and prompt and _missing(tokens):
            return list(self.tokenizer(prompt)["input_ids"])
        if _missing(prompt) and not _missing(tokens):
            return self._ids(tokens, number)
        raise DataError(f"row {number}: {EXPECTED}, one of the two and not empty")

    def _ids(self, tokens: Any, number: int) -> list[int]:
        size = int(self.model.config.vocab_size)
        try:
            ids = [int(token) for token in tokens]
        except (TypeError, ValueError) as error:
            raise DataError(f"row {number}: {TOKENS}: expected a list of token ids ({reason(error)})") from None
        if not ids or not all(0 <= token < size for token in ids):
            raise DataError(f"row {number}: {TOKENS}: expected token ids from 0 to {size - 1}, at least one")
        return ids

    def _written(self, contexts: list[list[int]], max_tokens: int, temperature: float, seed: int) -> list[str]:
        import torch

        from refine.evaluation.decoding import read_contexts, write_greedily

        if not 1 <= max_tokens <= MOST_TOKENS:
            raise ModelError(f"max_tokens is {max_tokens}: expected 1 to {MOST_TOKENS}")
        if not contexts:
            return []
        with torch.no_grad():
            memory, last = read_contexts(self.model, contexts)
            if temperature == 0:
                limits = [max_tokens] * len(contexts)
                written = write_greedily(self.model, self.tokenizer, memory, last, limits, lambda row, text: False)
            else:
                end = self.tokenizer.eos_token_id
                stop = [] if end is None else [end]
                seeds = torch.arange(seed, seed + len(contexts))
                made = self.model.continue_sampled(memory, last, max_tokens, seeds, temperature, stop)
                pairs = zip(made.tokens.tolist(), made.lengths.tolist(), strict=True)
                written = [[one for one in row[:length] if one not in stop] for row, length in pairs]
        return [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in written]


def _rows(model_input: Any) -> list[dict[str, Any]]:
    """The rows of a table. A server is also sent `{"inputs": {"prompt": ["a", "b"]}}`, which MLflow hands on as one
    cell with all prompts: each is a row. Raises DataError: the table has none of the columns."""
    columns = [str(name) for name in getattr(model_input, "columns", ())]
    if not {PROMPT, TOKENS} & set(columns):
        raise DataError(f"the input has columns {', '.join(columns) or 'without names'}; {EXPECTED}")
    return [one for row in model_input.to_dict("records") for one in _each_prompt(row)]


def _each_prompt(row: dict[str, Any]) -> list[dict[str, Any]]:
    prompts = row.get(PROMPT)
    if prompts is None or isinstance(prompts, str) or not hasattr(prompts, "__len__"):
        return [row]
    return [{**row, PROMPT: prompt} for prompt in prompts] or [row]


def _missing(value: Any) -> bool:
    """Whether a cell of a table is empty: None or NaN."""
    return value is None or (isinstance(value, float) and value != value)


def _load_pyfunc(path: str) -> TextModel:
    """MLflow calls this with the folder of the model."""
    return TextModel(path)


def write_flavour(folder: str | Path, model_id: str, run_id: str) -> None:
    """Write MLmodel, its example and its requirements to `folder`, which must be new or empty."""
    import pandas
    from mlflow import pyfunc
    from mlflow.models import Model

    with quiet_logger("mlflow", logging.WARNING):
        pyfunc.save_model(
            folder,
            loader_module=__name__,
            mlflow_model=Model(model_id=model_id, run_id=run_id or None),
            signature=_signature(),
            input_example=pandas.DataFrame({PROMPT: [EXAMPLE]}),
            pip_requirements=[f"refine-fast-weights=={refine.__version__}"],
        )


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    kinds = {int: DataType.long, float: DataType.double}
    return ModelSignature(
        Schema(
            [
                ColSpec(DataType.string, PROMPT, required=False),
                ColSpec(Array(DataType.long), TOKENS, required=False),
            ]
        ),
        Schema([ColSpec(DataType.string, TEXT)]),
        ParamSchema([ParamSpec(name, kinds[type(value)], value) for name, value in DEFAULTS.items()]),
    )
