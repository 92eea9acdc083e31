"""What `refine demo` computes: prompts and exercises share nothing, and the model that is given does not change."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

import refine.models
from refine.cli import demo_computation
from refine.cli.demo_computation import HELD_OUT, demonstrate, to_show
from refine.data.corpus import packages
from refine.data.prompts.prompt import kept_for_exercises
from refine.data.tokenizer import load_tokenizer
from tests.cli.demo_by_hand import made_by_hand


@pytest.fixture(scope="module")
def made():
    """(a demonstration of 256 tokens, its progress lines, whether the model has changed)."""
    model, lines = refine.models.from_pretrained("sample/delta_net", dtype=torch.float32).eval(), []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_computation, "PROMPTS", 3)
        shown = demonstrate(model, load_tokenizer("sample/delta_net"), 256, 3, 2, lines.append)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    return shown, lines, changed


def test_the_model_does_not_change(made):
    assert made[2] == []


def test_each_prompt_hides_its_needle_in_another_passage_of_the_held_out_plays(made):
    prompts = made[0].prompts
    plays = {work.work: " ".join(work.text.split()) for work in packages.works("plays")}
    held_out = " ".join(plays[name] for name in HELD_OUT)
    starts = [prompt.prompt.split("\n")[1][:40] for prompt in prompts]
    assert all(start in held_out for start in starts) and len(set(starts)) == len(prompts) == 3
    assert all(not kept_for_exercises(prompt.answers[0]) for prompt in prompts)
    assert made[0].needle in prompts[made[0].shown].prompt
    assert made[0].needle.endswith(prompts[made[0].shown].answers[0])


def test_the_exercise_is_read_with_its_marks(made):
    read = made[0].exercise
    assert len(read.tokens) == len(read.entropy)
    values = ["".join(read.tokens[first : last + 1]).strip() for first, last in read.told]
    assert values and all(re.fullmatch(r"\d{7}", value) and kept_for_exercises(value) for value in values)
    assert {one.text.strip()[:7] for one in read.at_marks} <= set(values)
    assert 1 <= len(read.by_entropy) <= 8 and all(0 <= one.reward <= 1 for one in (*read.by_entropy, *read.at_marks))


def test_three_states_answer_every_prompt(made):
    states = made[0].states
    assert [state.name for state in states] == ["as it is", "next-token loss", "REFINE and focus"]
    assert all(len(state.answers) == len(state.right) == 3 for state in states)
    assert len({state.log_prob for state in states}) == 3
    assert states[0].seconds == 0 < min(state.seconds for state in states[1:])


def test_the_prompt_to_show_is_the_first_that_was_learned():
    states = made_by_hand().states
    assert to_show(states) == 0 and to_show(states[:1]) == 0
    assert to_show([replace(states[0], right=(True, False)), replace(states[2], right=(True, True))]) == 1
    assert to_show([replace(states[0], right=(True, True)), replace(states[2], right=(True, False))]) == 0


def test_each_step_is_reported(made):
    lines = made[1]
    for name in ("next-token loss", "REFINE and focus"):
        steps = [line.split(", loss")[0] for line in lines if line.startswith(f"{name}: step")]
        assert steps == [f"{name}: step 1 of 2", f"{name}: step 2 of 2"]
    assert max(map(len, lines)) <= 78
