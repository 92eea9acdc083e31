"""How the sample's settings were chosen: every arm of a phase tries the same learning rates on validation prompts.

`python -m benchmarks.studies.tune_sample --phase mid --output runs/tuning` (after the data stages of `make run`). Every
phase starts from the shipped model. Validation prompts are needles of another seed and the validation questions; no
test prompt is read. Prints a table in which the best rate of each arm is bold (by the log-probability of the answers),
and writes OUTPUT/PHASE.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from refine import paths, settings
from refine.evaluation import Evaluation, Inputs, evaluate_model
from refine.phases.prepared_data import Prepared
from refine.settings import Settings

MODEL = "sample/delta_net"
LEARNING_RATES = {"mid": (2.5e-4, 5e-4, 1e-3), "post": (2e-4, 8e-4, 3.2e-3), "test_time": (2e-4, 8e-4, 3.2e-3)}
GROUPED = ("rollouts=4", "group=position")
# phase -> name of the row -> the arm, and overrides of its objective in params.yaml
ARMS: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    "mid": {
        "SFT": ("sft", ()),
        "REFINE": ("refine", ()),
        "REFINE marked": ("refine_marked", ()),
        "focus": ("focus", ()),
    },
    "post": {
        "SFT": ("sft", ()),
        "nested SFT": ("nested_sft", ()),
        "nested REFINE c=8 n=1": ("nested_refine", ("rollouts=1", "group=sequence")),
        "nested REFINE c=8 n=4 by position": ("nested_refine", GROUPED),
    },
    "test_time": {
        "SFT": ("sft", ()),
        "REFINE c=8 n=1": ("refine", ("rollouts=1", "group=sequence")),
        "REFINE c=8 n=4 by position": ("refine", GROUPED),
    },
}
SEED_OF_NEEDLES = 1000  # test prompts are drawn with the experiment's seed


@click.command()
@click.option("--phase", type=click.Choice(list(ARMS)), default="mid", show_default=True)
@click.option("--output", type=Path, default=paths.runs() / "tuning", show_default=True)
@click.option("--params", type=Path, default=Path("params.yaml"), show_default=True)
@click.option("-S", "overrides", multiple=True, help="Override a setting of all arms.")
def main(phase: str, output: Path, params: Path, overrides: tuple[str, ...]) -> None:
    """Train each arm of a phase with each learning rate and score it on the validation prompts."""
    from refine.system.quiet import quiet_libraries

    quiet_libraries()
    lines = [
        "| arm | learning rate | loss | needles | questions | log-prob. of the answers |",
        "|---|---|---|---|---|---|",
    ]
    plain = settings.load(params, overrides)
    lines.append(_line("none", "", _summary(_scored(plain, MODEL)), ""))
    for name, (arm, objective) in ARMS[phase].items():
        found = {}
        for rate in LEARNING_RATES[phase]:
            chosen = [f"training.{phase}.learning_rate={rate}", *(f"training.{phase}.objective.{x}" for x in objective)]
            values = settings.load(params, (*overrides, *chosen))
            found[rate] = _summary(_candidate(phase, arm, values, output / f"{phase} {name} {rate}"))
            click.echo(_line(name, f"{rate:g}", found[rate], ""), err=True)
        best = max(values["log_prob"] for values in found.values())
        lines += [_line(name, f"{r:g}", one, "**" if one["log_prob"] == best else "") for r, one in found.items()]
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{phase}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    click.echo("\n".join(lines))


def _line(name: str, rate: str, values: dict[str, float], mark: str) -> str:
    return (
        f"| {name} | {mark}{rate}{mark} | {values['loss']:.4f} | {100 * values['needles']:.1f} | "
        f"{100 * values['questions']:.1f} | {mark}{values['log_prob']:.4f}{mark} |"
    )


def _candidate(phase: str, arm: str, values: Settings, folder: Path) -> Evaluation:
    """Trains the arm with these settings and scores it."""
    from refine.phases import mid, post
    from refine.training.test_time import TestTimeTrainer

    data = Prepared(paths.prepared())
    if phase == "test_time":
        assert values.training.test_time is not None
        return _scored(values, MODEL, TestTimeTrainer(values.training.test_time, arm, values.seed))
    if phase == "mid":
        mid.plan(values, arm, MODEL, data).run(folder)
    else:
        post.plan(values, arm, MODEL, data, data.questions("train")).run(folder)
    return _scored(values, folder / "model")


def _scored(values: Settings, model: str | Path, adapter: Any = None) -> Evaluation:
    """Scores on validation prompts and, without an adapter that changes the model for each prompt, on text."""
    from refine.data.token_sequences import load_token_sequences
    from refine.data.tokenizer import load_tokenizer

    data, tokenizer = Prepared(paths.prepared()), load_tokenizer(MODEL)
    text = {} if adapter else {"val": load_token_sequences(data.documents("validation"))}
    return evaluate_model(model, Inputs(text, _prompts(values, data, tokenizer)), tokenizer, adapter=adapter)


def _summary(found: Evaluation) -> dict[str, float]:
    """Loss, shares of right answers, and the mean log-probability over all kinds of prompts."""
    needles = [task for task in found.tasks if task.task.startswith("niah")]
    questions = [task for task in found.tasks if not task.task.startswith("niah")]
    return {
        "loss": found.next_token["val"].loss if found.next_token else float("nan"),
        "needles": sum(task.score.value for task in needles) / len(needles),
        "questions": sum(task.score.value for task in questions) / len(questions),
        "log_prob": sum(task.log_prob.value for task in found.tasks) / len(found.tasks),
    }


def _prompts(values: Settings, data: Prepared, tokenizer: Any) -> dict[tuple[str, int], Any]:
    return dict(_made(values, data, tokenizer))


def _made(values: Settings, data: Prepared, tokenizer: Any) -> Iterator[tuple[tuple[str, int], Any]]:
    from refine.data.prompts.needles import make_needles
    from refine.data.prompts.prompt import load_prompts
    from refine.data.raw_documents import read_texts

    of, essay = values.needles, list(read_texts(Path("data") / "validation.parquet"))
    for task in of.tasks:
        for length in of.lengths:
            yield (
                (task, length),
                make_needles(task, length, of.samples, tokenizer, essay, SEED_OF_NEEDLES, of.answer_tokens),
            )
    for path in data.questions("validation"):
        prompts = load_prompts(path)
        yield (prompts[0].task, prompts[0].length), prompts


if __name__ == "__main__":
    main()
