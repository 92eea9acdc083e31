"""After SIGKILLs at random moments, some while a checkpoint is written, weights and metrics are the same bits."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from refine import settings as settings_module
from refine.data.prompts.prompt import Prompt, write_prompts
from refine.phases import mid, post, start
from refine.phases.prepared_data import Prepared

# Twelve steps with a checkpoint after each: most of the time is spent writing.
EVERY_STEP = tuple(
    f"training.{phase}.{name}={value}"
    for phase in ("start", "mid")
    for name, value in (("steps", 12), ("checkpoint_every", 1))
)


@pytest.fixture
def killing(monkeypatch):
    """The module that starts the processes, importable in them."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import killing

    return killing


@pytest.fixture
def phases(killing, params, prepared_folder, tmp_path):
    """A function and its arguments that run each phase; the output folder is the last argument, added by the test."""
    short = (
        "training.post={steps: 3, prompt_steps: 2, sequences_per_step: 4, sequences_per_pass: 4, learning_rate: 0.01, "
    )
    short += "checkpoint_every: 1, evaluate_every: 4, objective: {positions: 2, rollout_length: 2, min_prefix: 4}}"
    values, data = settings_module.load(params, (*EVERY_STEP, short)), Prepared(prepared_folder)
    prompts = write_prompts([Prompt("w1", ("w2",), "factsqa", 48, 4)] * 6, tmp_path / "prompts.parquet")
    model = str(tmp_path / "start" / "model")
    return {
        "start": (killing.train, start.plan, (values, data)),
        "mid": (killing.train, mid.plan, (values, "refine", model, data)),
        "post": (killing.train, post.plan, (values, "nested_refine", model, data, [prompts])),
    }


def same_after_kills(killing, phase, kills, seed, tmp_path, weights, series) -> int:
    """Run `phase` without and with kills; weights and metrics must be the same. Returns how many kills hit."""
    killing.finish(*phase, tmp_path / "whole")
    whole, output = series(tmp_path / "whole"), tmp_path / "killed"
    killed = killing.run_with_kills(output, len(whole), random.Random(seed), kills, *phase, output)
    assert weights(output / "model") == weights(tmp_path / "whole" / "model")
    assert series(output) == whole
    assert not list(output.glob(".*.unfinished"))
    return killed


def test_a_run_comes_out_the_same_after_kills(killing, phases, tmp_path, weights, series):
    assert same_after_kills(killing, phases["start"], 3, 1, tmp_path, weights, series) >= 2


@pytest.mark.slow
def test_every_phase_comes_out_the_same_after_kills(killing, phases, tmp_path, weights, series):
    """Fifteen SIGKILLs over the three phases."""
    killing.finish(*phases["start"], tmp_path / "start")
    killed = 0
    for number, (name, phase) in enumerate(phases.items()):
        (tmp_path / name).mkdir(exist_ok=True)
        killed += same_after_kills(killing, phase, 5, number, tmp_path / name, weights, series)
    assert killed >= 10
