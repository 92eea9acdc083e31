"""SIGKILL at random moments, some of them while a checkpoint is written: the same bits and the same series come out."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from refine import settings as settings_module
from refine.training.mid_training import mid_training
from refine.training.prepared import Prepared
from refine.training.start_training import start_training

# Twelve steps with a checkpoint after each: most of the time is spent writing.
EVERY_STEP = tuple(
    f"training.{phase}.{name}={value}"
    for phase in ("start", "mid")
    for name, value in (("steps", 12), ("checkpoint_every", 1))
)


@pytest.fixture
def killing(monkeypatch):
    """The module with the processes, importable by them."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import killing

    return killing


def test_a_starting_model_comes_out_the_same_after_kills(killing, params, prepared_folder, tmp_path, weights, series):
    values, data = settings_module.load(params, EVERY_STEP), Prepared(prepared_folder)
    killing.finish(start_training, values, data, tmp_path / "whole")
    whole, output = series(tmp_path / "whole"), tmp_path / "killed"
    killed = killing.run_with_kills(output, len(whole), random.Random(1), 4, start_training, values, data, output)
    assert killed >= 3
    assert weights(output / "model") == weights(tmp_path / "whole" / "model")
    assert series(output) == whole
    assert not list(output.glob(".*.unfinished"))


def test_mid_training_comes_out_the_same_after_kills(killing, params, prepared_folder, tmp_path, weights, series):
    values, data = settings_module.load(params, EVERY_STEP), Prepared(prepared_folder)
    killing.finish(start_training, values, data, tmp_path / "start")
    arguments = (mid_training, values, "refine", str(tmp_path / "start" / "model"), data)
    killing.finish(*arguments, tmp_path / "whole")
    whole, output = series(tmp_path / "whole"), tmp_path / "killed"
    killed = killing.run_with_kills(output, len(whole), random.Random(2), 6, *arguments, output)
    assert killed >= 4
    assert weights(output / "model") == weights(tmp_path / "whole" / "model")
    assert series(output) == whole
