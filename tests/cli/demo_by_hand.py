"""A demonstration made by hand, for the tests of what `refine demo` shows."""

from __future__ import annotations

from refine.cli.demo_computation import Demonstration, ExerciseRead, Rollout, State
from refine.data.prompts.needles import NEEDLE, TEMPLATE
from refine.data.prompts.prompt import Prompt
from refine.evaluation.record import Answer

VALUES = ("1234567", "7654321")


def made_by_hand() -> Demonstration:
    """Two prompts, three states; the last state finds the second needle, which is shown."""
    states = tuple(
        State(name, seconds, tuple(Answer(f" {text}.\nOne of", 9, 400, 0, -0.5) for text in texts), right)
        for name, seconds, texts, right in (
            ("as it is", 0.0, ("1111111", "2222222"), (False, False)),
            ("next-token loss", 9.4, ("1234567", "2222222"), (True, False)),
            ("REFINE and focus", 11.6, ("1234567", "7654321"), (True, True)),
        )
    )
    return Demonstration(tuple(_prompt(value) for value in VALUES), 1, 40, states, _exercise())


def _prompt(value: str) -> Prompt:
    needle = NEEDLE.format(type="numbers", key="grey-barn", value=value)
    context = f"{'To be or not to be. ' * 20}{needle} {'That is the question. ' * 20}"
    text = TEMPLATE.replace("are all", "is").format(type="number", context=context, query="grey-barn")
    return Prompt(text, (value,), "niah_single_2", 412, 12, 400, (51.0,))


def _exercise() -> ExerciseRead:
    tokens = ("<s>", *(" word" for _ in range(79)), *VALUES[0], *("\n" for _ in range(13)))
    by_entropy = (Rollout(30, " a long line\nof many words", " word word", 0.02), Rollout(60, " x", " word", 0.0))
    return ExerciseRead(
        tokens, (4.0,) * 80 + (2.0,) * 20, ((40, 46),), by_entropy, (Rollout(80, "1234", "1234567", 0.5),)
    )
