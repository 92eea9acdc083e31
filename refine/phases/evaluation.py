"""Evaluation of several models in one process, which imports torch once and reads documents and prompts once:
`python -m refine.phases.evaluation REQUEST.json`. It skips a model that has an evaluation.json, so a retry goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from refine.evaluation.record import EVALUATION_FILE
from refine.metric_names import HEADLINES
from refine.settings.training import TestTimeSettings
from refine.system.files import write_json, write_text
from refine.system.one_line_errors import one_line_errors
from refine.system.quiet import quiet_libraries
from refine.system.readers import in_form, read_json

ADAPTED_TASKS = ("questions",)  # the tasks that score test-time training


class ModelRequest(BaseModel, frozen=True):
    """One model to score. model: folder or hub name. output: folder of the results. adapted_by: an arm of test-time
    training, which adapts the model to each question before it answers; documents and needles are left out then."""

    name: str
    model: str
    output: Path
    adapted_by: str = ""


class Request(BaseModel, frozen=True):
    """What the flow asks this process for. data: folder of documents and prompts. seed: of test-time training."""

    data: Path
    batch_size: int
    seed: int
    test_time: TestTimeSettings | None
    models: tuple[ModelRequest, ...]

    def write(self, path: Path) -> Path:
        """Write the request to a JSON file that `main` reads. Returns the path."""
        return write_json(path, self.model_dump(mode="json"))

    @staticmethod
    def read(path: Path) -> Request:
        """What `write` wrote. Raises DataError: no such file, or no request in it."""
        values = read_json(path, "a request of the flow's")
        with in_form(path, "a request of the flow's"):
            return Request.model_validate(values)


def main(file: Path) -> None:
    """Evaluate every model of the request in `file`."""
    from refine.system.processes import die_with_parent

    die_with_parent()
    request = Request.read(file)
    from refine.evaluation import Inputs, Sources, load_inputs
    from refine.evaluation.evaluate import load_tokenizer

    quiet_libraries()
    inputs: dict[bool, Inputs] = {}
    for one in request.models:
        if (one.output / EVALUATION_FILE).exists():
            continue
        tokenizer, adapted = load_tokenizer(one.model), bool(one.adapted_by)
        if adapted not in inputs:
            tasks = ADAPTED_TASKS if adapted else None
            inputs[adapted] = load_inputs(request.data, tasks, sources=Sources(tokenizer))
        _evaluate(one, inputs[adapted], tokenizer, request)


def _evaluate(one: ModelRequest, inputs: Any, tokenizer: Any, request: Request) -> None:
    from refine.evaluation import evaluate_model

    found = evaluate_model(
        one.model,
        inputs,
        tokenizer,
        batch_size=request.batch_size,
        adapter=_adapter(one.adapted_by, request, tokenizer),
        name=one.name,
        answers_file=one.output / "answers.jsonl",
    )
    write_text(one.output / "table.md", found.table() + "\n")
    found.save(one.output)
    print(f"evaluation of {one.name}: {_summary(found.metrics())} ({found.seconds:.0f} s)", flush=True)


def _adapter(arm: str, request: Request, tokenizer: Any) -> Any:
    if not arm:
        return None
    from refine.training.test_time import TestTimeTrainer

    assert request.test_time is not None
    return TestTimeTrainer(request.test_time, arm, request.seed, tokenizer)


def _summary(metrics: dict[str, float]) -> str:
    shown = [name for name in metrics if name.endswith(HEADLINES)]
    return ", ".join(f"{name.removeprefix('eval/').removesuffix('/score')} {metrics[name]:.4f}" for name in shown)


if __name__ == "__main__":
    with one_line_errors():
        main(Path(sys.argv[1]))
