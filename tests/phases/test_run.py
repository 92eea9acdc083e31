"""A run in a folder resumes to the same bits, and writes its model, record and metrics."""

from __future__ import annotations

import json
import os

import pytest

from refine.errors import TrainingError
from refine.training import checkpoints

WILD = ("training.mid.learning_rate=0.5", "training.mid.evaluate_every=1", "training.mid.checkpoint_every=1")


def test_a_run_leaves_model_tokenizer_record_and_series(mid, tmp_path, series, capfd):
    from transformers.utils import logging

    logging.enable_progress_bar()
    record = mid("run")
    assert "Loading weights" not in capfd.readouterr().err
    assert logging.is_progress_bar_enabled(), "the run turned off the user's progress bars"
    output = tmp_path / "run"
    assert record == json.loads((output / "result.json").read_text())
    assert record["steps"] == 6 and record["tokens"] == 6 * 4 * 48 and record["arm"] == "refine" and record["seed"] == 1
    assert {"val/loss", "val/accuracy", "val/reward/cosine/mean", "train/reward/cosine/std"} <= set(record["metrics"])
    assert checkpoints.is_complete(output / "model") and (output / "model" / "tokenizer.json").is_file()
    assert not list(output.rglob("training_args.bin"))
    assert (output / "reward_histograms.csv").read_text().count("\nval,cosine,") == 40 * 3, (
        "a line a bin and validation"
    )
    assert (output / "reward_histograms.png").is_file()
    assert [row["step"] for row in series(output)] == [0, 1, 2, 3, 3, 4, 5, 6, 6]

    from refine.models import from_pretrained

    assert from_pretrained(output / "model").config.vocab_size == 64
    assert "Loading weights" in capfd.readouterr().err


def test_arms_differ_in_the_loss_alone(mid):
    none, sft, refine = (mid(arm, arm) for arm in ("none", "sft", "refine"))
    assert none["steps"] == 0 and none["tokens"] == 0
    assert sft["steps"] == refine["steps"] and sft["tokens"] == refine["tokens"]
    losses = {record["metrics"]["val/loss"] for record in (none, sft, refine)}
    assert len(losses) == 3, "two arms gave the same model"
    assert {record["data"]["train_hash"] for record in (none, sft, refine)} == {refine["data"]["train_hash"]}


@pytest.mark.parametrize(("packing", "tokens"), [("false", 6 * 4 * 24), ("true", 6 * 4 * 96)])
def test_shorter_and_packed_sequences_train_by_a_setting(mid, packing, tokens):
    """Sequences of 48 tokens: in halves, or two (four halves) to a row."""
    length = 24 if packing == "false" else 96
    record = mid("run", "refine", f"training.mid.length={length}", f"training.mid.packing={packing}")
    assert record["tokens"] == tokens


def test_arm_none_is_the_starting_model_unchanged(mid, start_model, tmp_path, weights):
    mid("none", "none")
    assert weights(tmp_path / "none" / "model") == weights(start_model)


@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_crashed_run_resumes_to_the_same_bits_and_the_same_series(mid, tmp_path, weights, series, step, stop_at):
    mid("whole")
    with pytest.raises(RuntimeError, match="crash"):
        mid("broken", callbacks=[stop_at(step)])
    mid("broken")
    assert weights(tmp_path / "broken" / "model") == weights(tmp_path / "whole" / "model")
    assert series(tmp_path / "broken") == series(tmp_path / "whole")


def test_an_incomplete_checkpoint_is_passed_over(mid, tmp_path, weights, caplog, stop_at):
    mid("whole")
    with pytest.raises(RuntimeError, match="crash"):
        mid("broken", callbacks=[stop_at(5)])
    (tmp_path / "broken" / "checkpoint-4" / "optimizer.pt").write_bytes(b"half")
    mid("broken")
    assert "checkpoint-4 is incomplete or damaged and is ignored" in caplog.text
    assert weights(tmp_path / "broken" / "model") == weights(tmp_path / "whole" / "model")


def test_a_run_that_crashed_after_its_last_step_only_finishes(mid, tmp_path, weights, series, stop_at):
    mid("whole")
    with pytest.raises(RuntimeError, match="crash"):
        mid("broken", callbacks=[stop_at(6, "on_train_end")])
    assert not (tmp_path / "broken" / "model").exists()
    record = mid("broken")
    assert record["steps"] == 6
    assert weights(tmp_path / "broken" / "model") == weights(tmp_path / "whole" / "model")
    assert series(tmp_path / "broken") == series(tmp_path / "whole")


def test_with_keep_best_the_best_checkpoint_is_the_result(mid, tmp_path, weights, series):
    """At a learning rate that ruins the model, the best validation is an early one."""
    wild = (*WILD, "training.mid.steps=2")
    record = mid("best", "sft", *wild, "training.mid.keep=best")
    losses = {row["step"]: row["val/loss"] for row in series(tmp_path / "best") if "val/loss" in row and row["step"]}
    best = min(losses, key=losses.__getitem__)
    assert best == 1 and record["best_step"] == best and record["metrics"]["val/loss"] == losses[best]
    assert weights(tmp_path / "best" / "model") == weights(tmp_path / "best" / f"checkpoint-{best}")
    last = mid("last", "sft", *wild)
    assert last["metrics"]["val/loss"] == losses[2]


def test_a_run_that_gets_no_better_stops_early_and_stays_stopped(mid, tmp_path, weights, series, stop_at):
    wild = WILD
    record = mid("whole", "sft", *wild, "training.mid.steps=20", "training.mid.early_stop_after=2")
    assert 2 < record["steps"] < 20
    losses = [row["val/loss"] for row in series(tmp_path / "whole") if "val/loss" in row]
    assert min(losses[-2:]) >= min(losses[1:-2])
    with pytest.raises(RuntimeError, match="crash"):
        mid("broken", "sft", *wild, "training.mid.steps=20", "training.mid.early_stop_after=2",
            callbacks=[stop_at(record["steps"], "on_train_end")])  # fmt: skip
    again = mid("broken", "sft", *wild, "training.mid.steps=20", "training.mid.early_stop_after=2")
    assert again["steps"] == record["steps"]
    assert weights(tmp_path / "broken" / "model") == weights(tmp_path / "whole" / "model")
    assert series(tmp_path / "broken") == series(tmp_path / "whole")


@pytest.mark.parametrize(
    "how", ["training.mid.sequences_per_pass=1", "training.mid.gradient_checkpointing=true", "training.processes=2"]
)
def test_a_run_resumes_with_settings_that_need_less_memory(mid, tmp_path, series, how, stop_at):
    """After an out-of-memory error a user changes an execution setting and starts again: it is still the same run."""
    whole = mid("whole")
    with pytest.raises(RuntimeError, match="crash"):
        mid("run", callbacks=[stop_at(3)])
    record = mid("run", "refine", how)
    assert [row["step"] for row in series(tmp_path / "run")] == [row["step"] for row in series(tmp_path / "whole")]
    assert record["identity_hash"] == whole["identity_hash"]
    assert record["metrics"]["val/loss"] == pytest.approx(whole["metrics"]["val/loss"], rel=1e-4)


def test_a_disk_that_is_full_between_checkpoints_is_one_line(mid, monkeypatch):
    """A run writes metrics at every step, also between checkpoints."""
    import errno

    from refine.training.metrics_file import MetricsFile

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MetricsFile, "on_log", full)
    with pytest.raises(TrainingError, match=r"cannot write .*run: No space left on device; free space") as error:
        mid("run")
    assert "\n" not in str(error.value)


def test_a_full_disk_leaves_the_last_checkpoint_whole(mid, tmp_path, weights, monkeypatch):
    """A limit on file sizes acts as a full disk: the optimizer of the checkpoint at step 4 does not fit."""
    import resource

    mid("whole")

    class Fill:
        def __new__(cls):
            from transformers import TrainerCallback

            def fill(self, args, state, control, **kwargs):
                if state.global_step == 4:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))

            return type("Fill", (TrainerCallback,), {"on_step_end": fill})()

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(TrainingError, match=r"cannot write .*checkpoint-4"):
            mid("full", callbacks=[Fill()])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    left = sorted(path.name for path in (tmp_path / "full").iterdir())
    assert "checkpoint-2" in left and "checkpoint-4" not in left and not any("unfinished" in name for name in left)
    mid("full")
    assert weights(tmp_path / "full" / "model") == weights(tmp_path / "whole" / "model")


def test_nothing_of_a_checkpoint_is_loaded_that_could_run_code(mid, tmp_path, monkeypatch, stop_at):
    """Resuming reads every file with weights_only."""
    import torch

    with pytest.raises(RuntimeError, match="crash"):
        mid("run", callbacks=[stop_at(3)])
    loaded, load = [], torch.load

    def watched(file, *args, **kwargs):
        loaded.append((os.path.basename(str(file)), kwargs.get("weights_only")))
        return load(file, *args, **kwargs)

    monkeypatch.setattr(torch, "load", watched)
    mid("run")
    assert {name for name, _ in loaded} == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert all(safe is True for _, safe in loaded)
