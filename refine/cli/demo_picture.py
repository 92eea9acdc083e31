"""The picture of `refine demo`: where rollouts start in an exercise, what its marks ask for, and what each state finds.

It is drawn for a page of about 800 pixels: 8 inches wide, with no text below 7 points.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from refine.cli.demo_computation import ROLLOUT_LENGTH
from refine.system.files import write_picture

if TYPE_CHECKING:
    from refine.cli.demo_computation import Demonstration, ExerciseRead

BLUE, GREEN, RED, ORANGE = "#3b6ea5", "#2a8c4a", "#c0392b", "#d97706"
SMOOTH = 24  # tokens of a mean of the entropy
BEFORE, AFTER = 8, 40  # tokens around the first mark that the second panel shows


def draw_demonstration(shown: Demonstration, path: Path) -> Path:
    """Draw three panels: the exercise, the tokens around its first mark, and the needles found. Returns `path`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7.2), layout="constrained")
    whole, near, found = figure.subplots(3, 1, height_ratios=(2.0, 1.8, 1.3))
    _whole(whole, shown.exercise)
    _near_the_first_mark(near, shown.exercise)
    _found(found, shown)
    return write_picture(path, figure, dpi=150)


def _whole(axis: Any, read: ExerciseRead) -> None:
    """The mean entropy along the exercise, the told values, and where each selection starts rollouts."""
    count = len(read.entropy)
    means = [sum(part) / len(part) for part in (read.entropy[i : i + SMOOTH] for i in range(0, count, SMOOTH))]
    axis.plot([min(i * SMOOTH + SMOOTH / 2, count) for i in range(len(means))], means, linewidth=1, color=BLUE)
    for number, (first, last) in enumerate(read.told):
        label = None if number else "a needle's value is told"
        axis.axvspan(first - count / 400, last + count / 400, color=GREEN, alpha=0.5, linewidth=0, label=label)
    for rollouts, color, height, label in (
        (read.by_entropy, RED, 0.9, "rollouts by entropy (published)"),
        (read.at_marks, ORANGE, 0.3, "rollouts at marks"),
    ):
        axis.plot(
            [one.position for one in rollouts],
            [height] * len(rollouts),
            linestyle="none",
            marker="^",
            markersize=7,
            color=color,
            label=label,
        )
    axis.set(xlim=(0, count * 1.01), ylim=(0, 7.5), xlabel="tokens read", ylabel="entropy [nats]")
    axis.set_title("An exercise, as the model reads it before training", fontsize=10, loc="left")
    axis.legend(loc="upper center", ncols=3, fontsize=8, frameon=False)


def _near_the_first_mark(axis: Any, read: ExerciseRead) -> None:
    """The entropy of each token around the first mark. Tokens that a rollout at a mark is compared with are orange."""
    marks = [one.position for one in read.at_marks]
    first = max((marks[0] if marks else len(read.tokens)) - BEFORE, 1)
    places = range(first, min(first + BEFORE + AFTER, len(read.tokens)))
    asked = {place for mark in marks for place in range(mark, mark + ROLLOUT_LENGTH)}
    colors = [ORANGE if place in asked else BLUE for place in places]
    axis.bar(list(places), [read.entropy[place - 1] for place in places], color=colors, width=0.8)
    labels = [read.tokens[place].replace("\n", "⏎").strip() or "·" for place in places]
    axis.set_xticks(list(places), labels, rotation=90, fontsize=7)
    axis.tick_params(axis="x", length=0)
    axis.set(xlim=(places.start - 0.7, places.stop - 0.3), ylabel="entropy [nats]")
    axis.set_title("Where it asks for what it has told: its first marks (orange)", fontsize=10, loc="left")


def _found(axis: Any, shown: Demonstration) -> None:
    """A bar for each state: how many of the needles it finds, and its answer to the prompt that is shown."""
    prompt, count = shown.prompts[shown.shown], len(shown.prompts)
    found = [sum(state.right) for state in shown.states]
    names = [state.name if len(state.name) < 12 else state.name.replace(" ", "\n", 1) for state in shown.states]
    axis.barh(names, found, color=GREEN, height=0.6)
    for row, state in enumerate(shown.states):
        text = " ".join(state.answers[shown.shown].text.split())[:8].rstrip(".,")
        verdict = "right" if state.right[shown.shown] else "wrong"
        label = f"{found[row]} of {count}; answers {text}: {verdict}"
        axis.annotate(label, (found[row], row), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axis.invert_yaxis()
    axis.set(xlim=(0, count * 1.4), xticks=range(0, count + 1, 2))
    axis.set_title(
        f"Needles found at {prompt.length} tokens after {shown.steps} steps, and answers to one prompt that asks for "
        f"{prompt.answers[0]}",
        fontsize=10,
        loc="left",
    )
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
