"""What the metrics of an evaluation are called, known from what a folder holds to evaluate on."""

from __future__ import annotations

from pathlib import Path

from refine.evaluation.inputs import document_sets, find_prompts

OF_DOCUMENTS = ("loss", "loss_low", "loss_high", "accuracy", "accuracy_low", "accuracy_high", "tokens", "sequences")
OF_PROMPTS = ("score", "score_low", "score_high", "samples", "log_prob", "log_prob_low", "log_prob_high", "cut")


def evaluated(folder: str | Path) -> set[str]:
    """Names of the metrics of a model that is scored on all the documents and prompts under `folder`.

    Raises DataError: a parquet file that is none, or two that hold the same prompts.
    """
    names = {f"{name}/{which}" for name in document_sets(folder) for which in OF_DOCUMENTS}
    return names | {f"eval/{task}/{length}/{which}" for task, length in find_prompts(folder) for which in OF_PROMPTS}
