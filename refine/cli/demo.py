"""`refine demo`: REFINE on one needle, in the terminal and as a picture, in under a minute on two cores."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from refine import paths
from refine.cli import options
from refine.system.files import write_picture

BARS = " ▁▂▃▄▅▆▇█"
WIDTH = 96  # columns of the entropy line


@click.command()
@click.option("--model", default="sample/delta_net", show_default=True, help="Folder, hub name, or a shipped model.")
@click.option("--length", default=512, show_default=True, type=click.IntRange(min=192), help="Prompt's tokens.")
@options.seed(1)
@options.output(shown="results/demo.png")
def demo(model: str, length: int, seed: int, output: Path | None) -> None:
    """Hide a needle in a held-out scene and let a model recall it: as it is, after REFINE, after test-time training."""
    import torch

    from refine.data import tokenizer as tokenizers
    from refine.models import from_pretrained
    from refine.system.quiet import quiet_libraries
    from refine.training.demonstration import demonstrate

    quiet_libraries()
    pieces = tokenizers.load(model)
    shown = demonstrate(from_pretrained(model, dtype=torch.float32).eval(), pieces, length, seed)
    _tell(shown)
    click.echo(f"written: {_draw(shown, output or paths.results() / 'demo.png')}")


def _tell(shown: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=120)
    console.print(f"\n{shown.prompt.prompt_tokens} tokens of a scene the model has not read; hidden in it: ", end="")
    console.print(f"[bold]{shown.needle.strip()}.[/bold]", highlight=False)
    answers = Table("the model", "answers", "", "log-probability of the number")
    for name, (one, right) in shown.answers.items():
        verdict = "[green]right[/green]" if right else "[red]wrong[/red]"
        answers.add_row(name, " ".join(one.text.split()), verdict, f"{one.log_prob:.3f} a token")
    console.print(answers)
    console.print(
        "entropy of the next token along the text (full block: 8 nats); ^ where REFINE rolls out, = the needle:"
    )
    for line in _entropy_lines(shown):
        console.print(line, highlight=False, markup=False)
    rollouts = Table("read", "the model writes", "the text says", "reward")
    for one in shown.rollouts:
        rollouts.add_row(str(one.position), repr(one.written)[1:-1], repr(one.text)[1:-1], f"{one.reward:.2f}")
    console.print(rollouts)


def _entropy_lines(shown: Any) -> list[str]:
    """Each column the mean over its share of the tokens."""
    count = len(shown.entropy)
    edges = [count * i // WIDTH for i in range(WIDTH + 1)]
    means = [sum(shown.entropy[a:b]) / max(b - a, 1) for a, b in pairwise(edges)]
    chosen = {one.position * WIDTH // count for one in shown.rollouts}
    first, last = (at * WIDTH // count for at in shown.needle_at)
    return [
        "".join(BARS[min(round(mean), 8)] for mean in means),
        "".join("^" if c in chosen else "=" if first <= c <= last else " " for c in range(WIDTH)),
    ]


def _draw(shown: Any, path: Path) -> Path:
    """Entropy along the text, the chosen positions, and what was written there; whole or not at all."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    axis = figure.subplots()
    axis.plot(range(1, len(shown.entropy) + 1), shown.entropy, linewidth=0.8, color="C0")
    axis.axvspan(*shown.needle_at, color="C2", alpha=0.25, linewidth=0, label="the needle")
    axis.legend(loc="upper right", fontsize=8)
    for one in shown.rollouts:
        axis.axvline(one.position, color="C3", linewidth=0.8, alpha=0.6)
        label = f"{one.written.strip()!r}\n({one.text.strip()!r})"
        axis.annotate(label, (one.position, 8.2), rotation=40, fontsize=7, color="C3", annotation_clip=False)
    answers = "; ".join(f"{name}: {' '.join(one.text.split())[:16]}" for name, (one, _) in shown.answers.items())
    axis.set(xlabel="tokens read", ylabel="entropy of the next token [nats]", ylim=(0, 8))
    figure.suptitle(f"{shown.needle.strip()}.\n{answers}", fontsize=9, y=1.13)
    return write_picture(path, figure, dpi=110, bbox_inches="tight")
