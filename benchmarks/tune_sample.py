"""How the sample's settings were chosen: every arm of a phase with the same candidates, scored on validation prompts.

python -m benchmarks.tune_sample --output runs/tuning (after the data stages of `make run`). Validation prompts are
needles of another seed and the validation questions; no test prompt is read. Prints a table, the best of each arm
marked, and writes OUTPUT/tuning.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from refine import paths, settings
from refine.settings import Settings

MODEL = "sample/delta_net"
LEARNING_RATES = (5e-5, 2e-4, 8e-4)
GROUPED = ("training.mid.objective.rollouts=4", "training.mid.objective.group=position")
ARMS: dict[str, tuple[str, ...]] = {
    "sft": (),
    "refine c=8 n=1": ("training.mid.objective.rollouts=1", "training.mid.objective.group=sequence"),
    "refine c=8 n=4 by position": GROUPED,
    "refine c=32 n=4 by position": (*GROUPED, "training.mid.objective.positions=32"),
}
SEED_OF_NEEDLES = 1000  # the test's is the experiment's own


@click.command()
@click.option("--output", type=Path, default=paths.runs() / "tuning", show_default=True)
@click.option("--params", type=Path, default=Path("params.yaml"), show_default=True)
@click.option("-S", "overrides", multiple=True, help="Laid over the settings of all arms.")
def main(output: Path, params: Path, overrides: tuple[str, ...]) -> None:
    """Train each arm of mid-training with each learning rate and score it on the validation prompts."""
    from refine.cli.evaluate import quiet

    quiet()
    lines = [
        "| arm | learning rate | loss | needles | questions | log-prob. of the answers |",
        "|---|---|---|---|---|---|",
    ]
    for arm, of_arm in {"none": ("training.mid.steps=0",), **ARMS}.items():
        found = []
        for rate in LEARNING_RATES if arm != "none" else LEARNING_RATES[:1]:
            chosen = (*overrides, *of_arm, f"training.mid.learning_rate={rate}")
            found.append((rate, _scored(arm, settings.load(params, chosen), output / f"{arm} {rate}")))
            click.echo(f"{arm} {rate}: {found[-1][1]}", err=True)
        best = max(values["log_prob"] for _, values in found)
        for rate, values in found:
            mark = "**" if values["log_prob"] == best and len(found) > 1 else ""
            lines.append(
                f"| {arm} | {mark}{rate:g}{mark} | {values['loss']:.4f} | {100 * values['needles']:.1f} | "
                f"{100 * values['questions']:.1f} | {mark}{values['log_prob']:.4f}{mark} |"
            )
    output.mkdir(parents=True, exist_ok=True)
    (output / "tuning.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    click.echo("\n".join(lines))


def _scored(arm: str, values: Settings, folder: Path) -> dict[str, float]:
    """Validation loss, shares found, and the mean log-probability over all kinds of prompts."""
    from refine.data import tokenizer as tokenizers
    from refine.evaluation import Inputs, evaluate_model
    from refine.training.mid_training import mid_training
    from refine.training.prepared import Prepared

    data = Prepared(paths.prepared())
    record = mid_training(values, arm.split()[0], MODEL, data, folder)
    tokenizer = tokenizers.load(MODEL)
    found = evaluate_model(folder / "model", Inputs({}, _prompts(values, data, tokenizer)), tokenizer)
    needles = [task for task in found.tasks if task.task.startswith("niah")]
    questions = [task for task in found.tasks if not task.task.startswith("niah")]
    return {
        "loss": record["metrics"]["val/loss"],
        "needles": sum(task.score.value for task in needles) / len(needles),
        "questions": sum(task.score.value for task in questions) / len(questions),
        "log_prob": sum(task.log_prob.value for task in found.tasks) / len(found.tasks),
    }


def _prompts(values: Settings, data: Any, tokenizer: Any) -> dict[tuple[str, int], Any]:
    from refine.data import raw
    from refine.data.needles import make_needles
    from refine.data.prompts import load_prompts

    of, essay = values.needles, list(raw.texts(Path("data") / "validation.parquet"))
    made = {
        (task, length): make_needles(task, length, of.samples, tokenizer, essay, SEED_OF_NEEDLES, of.answer_tokens)
        for task in of.tasks
        for length in of.lengths
    }
    for path in data.questions("validation"):
        prompts = load_prompts(path)
        made[prompts[0].task, prompts[0].length] = prompts
    return made


if __name__ == "__main__":
    main()
