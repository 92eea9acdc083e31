"""Evaluation of several models in one process: `python -m flows.evaluating REQUEST.json` (one import of torch, one
reading of documents and prompts). A model whose evaluation.json is there already is left alone, so a retry goes on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from refine.errors import RefineError


def main(request: Path) -> None:
    """Evaluate what the file lists: {"data": folder, "batch_size": n, "models": [{"name", "model", "output"}, ...]}."""
    from refine.training.process import die_with_parent

    die_with_parent()
    wanted: dict[str, Any] = json.loads(request.read_text(encoding="utf-8"))
    from transformers.utils import logging

    from refine.evaluation import Inputs, Sources, evaluate_model, load_inputs
    from refine.evaluation.evaluate import load_tokenizer

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    inputs: Inputs | None = None
    for one in wanted["models"]:
        if (Path(one["output"]) / "evaluation.json").exists():
            continue
        tokenizer = load_tokenizer(one["model"])
        inputs = inputs or load_inputs(wanted["data"], sources=Sources(tokenizer))
        found = evaluate_model(
            one["model"],
            inputs,
            tokenizer,
            batch_size=wanted["batch_size"],
            name=one["name"],
            answers_file=Path(one["output"]) / "answers.jsonl",
        )
        Path(one["output"]).mkdir(parents=True, exist_ok=True)
        (Path(one["output"]) / "table.md").write_text(found.table() + "\n", encoding="utf-8")
        found.save(one["output"])
        print(f"evaluation {one['name']}: {_summary(found.metrics())} ({found.seconds:.0f} s)", flush=True)


def _summary(metrics: dict[str, float]) -> str:
    shown = [name for name in metrics if name.endswith(("/loss", "/score"))]
    return ", ".join(f"{name.removeprefix('eval/').removesuffix('/score')} {metrics[name]:.4f}" for name in shown)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except RefineError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
