"""Evaluation of several models in one process: `python -m refine.phases.evaluation REQUEST.json` (one import of torch,
one reading of documents and prompts). A model whose evaluation.json is there already is left alone, so a retry goes on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from refine.evaluation.record import EVALUATION_FILE
from refine.system.one_line_errors import one_line_errors
from refine.system.quiet import quiet_libraries

ADAPTED_TASKS = ("questions",)  # what test-time training is evaluated on, as in the paper (and LongBench, where there)


def main(request: Path) -> None:
    """Evaluate what the file lists: {"data": folder, "batch_size": n, "seed": n, "test_time": settings or None,
    "models": [{"name", "model", "output", "adapted_by"}, ...]}. With `adapted_by`, an arm of test-time training, the
    model is adapted to each question before it answers; documents and needles are left out then."""
    from refine.system.processes import die_with_parent

    die_with_parent()
    wanted: dict[str, Any] = json.loads(request.read_text(encoding="utf-8"))
    from refine.evaluation import Inputs, Sources, load_inputs
    from refine.evaluation.evaluate import load_tokenizer

    quiet_libraries()
    inputs: dict[bool, Inputs] = {}
    for one in wanted["models"]:
        if (Path(one["output"]) / EVALUATION_FILE).exists():
            continue
        tokenizer, adapted = load_tokenizer(one["model"]), bool(one["adapted_by"])
        if adapted not in inputs:
            tasks = ADAPTED_TASKS if adapted else None
            inputs[adapted] = load_inputs(wanted["data"], tasks, sources=Sources(tokenizer))
        _evaluate(one, inputs[adapted], tokenizer, wanted)


def _evaluate(one: dict[str, Any], inputs: Any, tokenizer: Any, wanted: dict[str, Any]) -> None:
    from refine.evaluation import evaluate_model

    output = Path(one["output"])
    found = evaluate_model(
        one["model"],
        inputs,
        tokenizer,
        batch_size=wanted["batch_size"],
        adapter=_adapter(one["adapted_by"], wanted),
        name=one["name"],
        answers_file=output / "answers.jsonl",
    )
    output.mkdir(parents=True, exist_ok=True)
    (output / "table.md").write_text(found.table() + "\n", encoding="utf-8")
    found.save(output)
    print(f"evaluation of {one['name']}: {_summary(found.metrics())} ({found.seconds:.0f} s)", flush=True)


def _adapter(arm: str, wanted: dict[str, Any]) -> Any:
    if not arm:
        return None
    from refine.settings.training import TestTimeSettings
    from refine.training.test_time import TestTimeTrainer

    return TestTimeTrainer(TestTimeSettings(**wanted["test_time"]), arm, wanted["seed"])


def _summary(metrics: dict[str, float]) -> str:
    shown = [name for name in metrics if name.endswith(("/loss", "/score"))]
    return ", ".join(f"{name.removeprefix('eval/').removesuffix('/score')} {metrics[name]:.4f}" for name in shown)


if __name__ == "__main__":
    with one_line_errors():
        main(Path(sys.argv[1]))
