"""`refine demo`: a needle that a model misses, and finds after the seconds of mid-training that the demo itself does.

`refine.cli.demo_computation` computes it; here it is printed, in lines of at most WIDTH columns. Heavy imports happen
in the functions, so that `refine demo --help` is fast.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import click

from refine import paths
from refine.cli import options
from refine.cli.progress_line import moving_line

if TYPE_CHECKING:
    from refine.cli.demo_computation import Demonstration, ExerciseRead, Rollout

WIDTH = 80
ENTROPY_BARS = " ▁▂▃▄▅▆▇█"
ENTROPY_COLUMNS = 68
AROUND = 130  # characters of the prompt to show on either side of the needle
MOST_STEPS = 10_000


@click.command()
@click.option(
    "--model",
    default="sample/delta_net",
    show_default=True,
    help="Folder, hub name, shipped model or models:/NAME@ALIAS.",
)
@click.option(
    "--length",
    default=3000,
    show_default=True,
    type=click.IntRange(192, options.MOST_TOKENS),
    help="Tokens of a prompt. Exercises have up to a third more.",
)
@click.option(
    "--steps",
    default=60,
    show_default=True,
    type=click.IntRange(1, MOST_STEPS),
    help="Training steps of one exercise each, for each way to train.",
)
@options.seed(1)
@options.output(shown="results/demo.png")
def demo(model: str, length: int, steps: int, seed: int, output: Path | None) -> None:
    """Hide needles in plays that a model has not read. It looks for them as it is, after training by next-token loss,
    and after REFINE and focus at marks, both on the same exercises."""
    import torch

    from refine.cli.demo_computation import demonstrate
    from refine.cli.demo_picture import draw_demonstration
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
    read = from_pretrained(model, dtype=torch.float32).eval()
    with (
        out_of_memory_in_one_line(ModelError, f"with prompts of {length} tokens", "lower --length"),
        moving_line() as (
            show,
            _,
        ),
    ):
        shown = demonstrate(read, tokenizer, length, seed, steps, show)
    for line in described(shown):
        click.echo(line)
    click.echo(f"wrote {draw_demonstration(shown, picture)}")


def described(shown: Demonstration) -> list[str]:
    """All that the demo prints, in lines."""
    return [*_prompt_lines(shown), "", *_state_lines(shown), "", *_exercise_lines(shown.exercise)]


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent)


def _prompt_lines(shown: Demonstration) -> list[str]:
    """The prompt's beginning, the needle with what surrounds it, and the question."""
    prompt = shown.prompts[shown.shown]
    text, first = " ".join(prompt.prompt.split()), " ".join(shown.needle.split())
    at = text.index(first)
    before, after = text[max(at - AROUND, 0) : at], text[at + len(first) : at + len(first) + AROUND]
    head = f"Prompt {shown.shown + 1} of {len(shown.prompts)}: {prompt.prompt_tokens} tokens of plays that no shipped"
    return [
        *_wrapped(f"{head} model was trained on, with one needle at {prompt.depths[0]:.0f} % of them."),
        "",
        *_wrapped(f"{prompt.prompt.splitlines()[0]} [...] {before}", "  "),
        f"  >>> {shown.needle}. <<<",
        *_wrapped(f"{after.lstrip('. ')} [...] {text[text.rindex('What is') :]}", "  "),
    ]


def _state_lines(shown: Demonstration) -> list[str]:
    """A row for each state of the model: its answer to this prompt, and its score on all prompts."""
    count, steps = len(shown.prompts), shown.steps
    lines = [f"{'model':<29}{'its answer':<15}{'':<6}{f'found of {count}':>12}{'log-prob.':>10}{'seconds':>8}"]
    for number, state in enumerate(shown.states):
        name = f"{steps} step{'s' if steps > 1 else ''}, {state.name}" if number else state.name
        text = " ".join(state.answers[shown.shown].text.split())[:14]
        verdict = "right" if state.right[shown.shown] else "wrong"
        scores = f"{sum(state.right):>12}{state.log_prob:>10.2f}{state.seconds:>8.0f}"
        lines.append(f"{name:<29}{text:<15}{verdict:<6}{scores}")
    note = (
        "log-prob.: mean log-probability of the answers' tokens, in nats. seconds: of training. Shown is the first "
        "prompt that the model as it is misses and the last one finds, or else prompt 1."
    )
    return [*lines, *_wrapped(note)]


def _exercise_lines(read: ExerciseRead) -> list[str]:
    """The entropy along the first exercise, where rollouts start, and what they are."""
    head = f"The first of the exercises, {len(read.tokens)} tokens, as the model reads it before training."
    return [
        *_wrapped(f"{head} Entropy of the next token (full block: 8 nats):"),
        *_entropy_lines(read),
        "= a needle's value is told; | a mark: here the text asks for it;",
        "^ the published selection, by entropy, starts a rollout",
        "",
        f"{'rollouts start at':<19}{'the model writes':<27}{'the text has':<27}{'reward':>7}",
        *_rollout_lines("^", read.by_entropy),
        *_rollout_lines("|", read.at_marks),
    ]


def _rollout_lines(sign: str, rollouts: Iterable[Rollout]) -> list[str]:
    return [
        f"{f'{sign} token {one.position}':<19}{_quoted(one.written):<27}{_quoted(one.text):<27}{one.reward:>7.2f}"
        for one in rollouts
    ]


def _quoted(text: str, most: int = 25) -> str:
    quoted = repr(text)
    return quoted if len(quoted) <= most else f"{quoted[: most - 2]}…{quoted[0]}"


def _entropy_lines(read: ExerciseRead) -> list[str]:
    """The entropy, each column the mean over its share of the tokens; below it a line for each kind of place."""
    count = len(read.entropy)
    edges = [count * i // ENTROPY_COLUMNS for i in range(ENTROPY_COLUMNS + 1)]
    means = [sum(read.entropy[a:b]) / max(b - a, 1) for a, b in pairwise(edges)]

    def signs(sign: str, tokens: Iterable[int]) -> str:
        columns = {token * ENTROPY_COLUMNS // count for token in tokens}
        return "".join(sign if column in columns else " " for column in range(ENTROPY_COLUMNS))

    told = (token for first, last in read.told for token in range(first, last + 1))
    return [
        "entropy   " + "".join(ENTROPY_BARS[min(round(mean), 8)] for mean in means),
        "needles   " + signs("=", told),
        "published " + signs("^", (one.position for one in read.by_entropy)),
        "marks     " + signs("|", (one.position for one in read.at_marks)),
    ]
