"""`refine demo`: what REFINE does, on one prompt, in under a minute on two cores.

A needle is hidden in a held-out scene. A model recalls it as it is, after a few REFINE steps on other scenes, and after
test-time training on the prompt itself. Heavy imports happen in the functions, so that `refine demo --help` is fast.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refine import paths
from refine.cli import options
from refine.system.files import write_picture
from refine.system.leftovers import temporary_folder

if TYPE_CHECKING:
    from refine.data.prompts.prompt import Prompt
    from refine.evaluation.record import Answer
    from refine.models import FastWeightLanguageModel
    from refine.settings.objective import ObjectiveSettings

HELD_OUT = ("coriolanus", "king-john", "the-tempest", "twelfth-night")  # no shipped model is trained on them
STEPS, SEQUENCES, LEARNING_RATE = 8, 2, 2e-4
LENGTH = click.IntRange(192, options.MOST_TOKENS)
ENTROPY_BARS = " ▁▂▃▄▅▆▇█"
ENTROPY_COLUMNS = 96


@dataclass(frozen=True)
class Rollout:
    """After the first `position` tokens the model sampled `written`, where the text has `text`."""

    position: int
    written: str
    text: str
    reward: float  # mean over the position's rollouts, 0 to 1


@dataclass(frozen=True)
class Demonstration:
    """answers: state of the model -> its answer, and whether that is right. entropy: after each token [nats]."""

    prompt: Prompt
    needle: str
    needle_at: tuple[int, int]  # its first and last token
    answers: dict[str, tuple[Answer, bool]]
    tokens: list[str]
    entropy: list[float]
    rollouts: list[Rollout]


@click.command()
@click.option(
    "--model",
    default="sample/delta_net",
    show_default=True,
    help="Folder, hub name, shipped model or models:/NAME@ALIAS.",
)
@click.option(
    "--length",
    default=512,
    show_default=True,
    type=click.IntRange(192, options.MOST_TOKENS),
    help="Tokens of the prompt.",
)
@options.seed(1)
@options.output(shown="results/demo.png")
def demo(model: str, length: int, seed: int, output: Path | None) -> None:
    """Hide a needle in a held-out scene; a model recalls it as it is, after REFINE, and after test-time training."""
    import torch

    from refine.data.tokenizer import load_tokenizer
    from refine.errors import ModelError
    from refine.models import from_pretrained
    from refine.system.exhausted import out_of_memory_in_one_line
    from refine.system.quiet import quiet_libraries
    from refine.tracking.registered_folders import local

    picture = output or paths.results() / "demo.png"
    options.check_picture(picture, "--output")
    quiet_libraries()
    model = local(model)
    tokenizer = load_tokenizer(model)
    with out_of_memory_in_one_line(ModelError, f"with a prompt of {length} tokens", "lower --length"):
        shown = demonstrate(from_pretrained(model, dtype=torch.float32).eval(), tokenizer, length, seed)
    _print(shown)
    click.echo(f"wrote {_draw(shown, picture)}")


def demonstrate(model: FastWeightLanguageModel, tokenizer: Any, length: int, seed: int) -> Demonstration:
    """Hide a needle in a held-out scene of `length` tokens and let `model` recall it in three states.

    Leaves `model` unchanged. Raises SettingError: no needle fits `length`; DataError: the plays are not installed.
    """
    from refine.data.corpus import packages
    from refine.data.prompts.needles import make_needles
    from refine.data.prompts.tasks import known_task
    from refine.evaluation.answers import answer
    from refine.evaluation.scorers import scorer_of
    from refine.settings.training import TestTimeSettings
    from refine.training.test_time import TestTimeTrainer

    plays = {work.work: work.text for work in packages.works("plays")}
    haystack = " ".join(_scene(plays[name], seed) for name in HELD_OUT)
    (prompt,) = make_needles("niah_single_2", length, 1, tokenizer, haystack, seed, answer_tokens=12)
    objective = _objective()
    tokens, entropy, rollouts = _read(model, tokenizer, prompt, objective, seed)
    scenes = [_scene(text, seed) for name, text in plays.items() if name not in HELD_OUT]
    refined = _refined(model, tokenizer, scenes, objective)
    test_time = TestTimeSettings(learning_rate=LEARNING_RATE, steps=2, objective=objective)
    adapter = TestTimeTrainer(test_time, "refine", seed)
    answers = {
        "as it is": answer(model, tokenizer, [prompt])[0],
        f"after {STEPS} REFINE steps": answer(refined, tokenizer, [prompt])[0],
        "after test-time training": answer(model, tokenizer, [prompt], adapter=adapter)[0],
    }
    scorer = scorer_of(known_task(prompt.task))
    judged = {name: (one, scorer(one.text, prompt.answers) == 1.0) for name, one in answers.items()}
    needle = next(sentence for sentence in prompt.prompt.split(". ") if prompt.answers[0] in sentence).strip()
    return Demonstration(
        prompt, needle, _tokens_of(needle, prompt.prompt, tokenizer), judged, tokens, entropy, rollouts
    )


def _objective() -> ObjectiveSettings:
    from refine.settings.objective import ObjectiveSettings

    return ObjectiveSettings(positions=8, rollout_length=5, rollouts=4, group="position", reward="binary")


def _tokens_of(piece: str, text: str, tokenizer: Any) -> tuple[int, int]:
    """The first and last token of `piece` in `text`."""
    encoded, first = tokenizer(text), text.index(piece)
    return encoded.char_to_token(first), encoded.char_to_token(first + len(piece) - 1)


def _scene(text: str, seed: int, words: int = 1200) -> str:
    """`words` consecutive words of a play, from a place that depends on the seed."""
    from refine.training.order import derived_seed

    found = text.split()
    first = derived_seed("scene", seed) % max(len(found) - words, 1)
    return " ".join(found[first : first + words])


def _read(
    model: FastWeightLanguageModel, tokenizer: Any, prompt: Prompt, objective: ObjectiveSettings, seed: int
) -> tuple[list[str], list[float], list[Rollout]]:
    """The prompt's tokens, the entropy after each, and the best rollout of each position that REFINE samples at."""
    import torch

    from refine.objective import next_sequence_step

    ids = tokenizer(prompt.prompt)["input_ids"]
    tokens, seeds = torch.tensor([ids], device=model.device), torch.tensor([seed], device=model.device)
    with torch.no_grad():
        step = next_sequence_step(model, tokens, objective, seeds)
    rewards = step.rewards[objective.reward][0]  # [positions, rollouts]
    rollouts = []
    for column in step.valid[0].nonzero().flatten().tolist():
        position = int(step.positions[0, column])
        best = int(rewards[column].argmax())
        rollouts.append(
            Rollout(
                position,
                tokenizer.decode(step.rollouts[0, column, best].tolist()),
                tokenizer.decode(ids[position : position + objective.rollout_length]),
                float(rewards[column].mean()),
            )
        )
    return tokenizer.convert_ids_to_tokens(ids), step.entropy[0].tolist(), rollouts


def _refined(
    model: FastWeightLanguageModel, tokenizer: Any, scenes: Sequence[str], objective: ObjectiveSettings
) -> FastWeightLanguageModel:
    """A copy of `model` after a few REFINE steps on `scenes`."""
    from refine.training.arguments import RefineArguments
    from refine.training.trainer import RefineTrainer

    trained = copy.deepcopy(model)
    with temporary_folder("demo") as folder:
        arguments = RefineArguments(
            output_dir=str(folder),
            objective=objective,
            max_steps=STEPS,
            sequences_per_step=SEQUENCES,
            per_device_train_batch_size=SEQUENCES,
            max_length=768,
            learning_rate=LEARNING_RATE,
            save_strategy="no",
            seed=1,
        )
        rows = [{"text": scene} for scene in scenes]
        RefineTrainer(trained, arguments, train_dataset=rows, processing_class=tokenizer).train()
    return trained.eval()


def _print(shown: Demonstration) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=120)
    tokens = shown.prompt.prompt_tokens
    console.print(f"\n{tokens} tokens of a scene that the model was not trained on, with one needle: ", end="")
    console.print(f"[bold]{shown.needle}.[/bold]", highlight=False)
    answers = Table("model", "answer", "", "log-probability of the number")
    for name, (one, right) in shown.answers.items():
        verdict = "[green]right[/green]" if right else "[red]wrong[/red]"
        answers.add_row(name, " ".join(one.text.split()), verdict, f"{one.log_prob:.3f} per token")
    console.print(answers)
    console.print("entropy of the next token (full block: 8 nats); ^ REFINE samples rollouts here, = the needle:")
    for line in _entropy_lines(shown):
        console.print(line, highlight=False, markup=False)
    rollouts = Table("tokens read", "the model writes", "the text has", "reward")
    for rollout in shown.rollouts:
        written, text = repr(rollout.written)[1:-1], repr(rollout.text)[1:-1]
        rollouts.add_row(str(rollout.position), written, text, f"{rollout.reward:.2f}")
    console.print(rollouts)


def _entropy_lines(shown: Demonstration) -> list[str]:
    """The entropy, each column the mean over its share of the tokens; and the marks below it."""
    count = len(shown.entropy)
    edges = [count * i // ENTROPY_COLUMNS for i in range(ENTROPY_COLUMNS + 1)]
    means = [sum(shown.entropy[a:b]) / max(b - a, 1) for a, b in pairwise(edges)]
    sampled = {one.position * ENTROPY_COLUMNS // count for one in shown.rollouts}
    first, last = (token * ENTROPY_COLUMNS // count for token in shown.needle_at)
    return [
        "".join(ENTROPY_BARS[min(round(mean), 8)] for mean in means),
        "".join("^" if c in sampled else "=" if first <= c <= last else " " for c in range(ENTROPY_COLUMNS)),
    ]


def _draw(shown: Demonstration, path: Path) -> Path:
    """Draw the entropy along the text, the needle, and what the model writes at each position. Returns `path`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    axis = figure.subplots()
    axis.plot(range(1, len(shown.entropy) + 1), shown.entropy, linewidth=0.8, color="C0")
    axis.axvspan(*shown.needle_at, color="C2", alpha=0.25, linewidth=0, label="the needle")
    axis.legend(loc="upper right", fontsize=8)
    for rollout in shown.rollouts:
        axis.axvline(rollout.position, color="C3", linewidth=0.8, alpha=0.6)
        label = f"{rollout.written.strip()!r}\n({rollout.text.strip()!r})"
        axis.annotate(label, (rollout.position, 8.2), rotation=40, fontsize=7, color="C3", annotation_clip=False)
    answers = "; ".join(f"{name}: {' '.join(one.text.split())[:16]}" for name, (one, _) in shown.answers.items())
    axis.set(xlabel="tokens read", ylabel="entropy of the next token [nats]", ylim=(0, 8))
    figure.suptitle(f"{shown.needle}.\n{answers}", fontsize=9, y=1.13)
    return write_picture(path, figure, dpi=110, bbox_inches="tight")
