"""A run in a folder: it resumes to the same bits, never goes on from another run's checkpoint, and finishes once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from refine import settings as settings_module
from refine.errors import DataError, ModelError, SettingError, TrainingError
from refine.training import checkpoints
from refine.training.mid_training import mid_training
from refine.training.prepared import Prepared
from refine.training.start_training import start_training


@pytest.fixture(scope="module")
def start_model(prepared_folder, tmp_path_factory, checkout) -> Path:
    """A starting model, trained once for all tests here."""
    import yaml

    output = tmp_path_factory.mktemp("start")
    values = yaml.safe_load((checkout / "params.yaml").read_text(encoding="utf-8"))
    config = {
        "model_type": "delta_net",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_heads": 2,
        "intermediate_size": 32,
    }
    values["model"] = {"config": config}
    values["training"]["start"] = {
        "steps": 4, "sequences_per_step": 4, "sequences_per_pass": 4, "learning_rate": 1e-2, "checkpoint_every": 2,
        "evaluate_every": 2,
    }  # fmt: skip
    path = output / "params.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    start_training(settings_module.load(path), Prepared(prepared_folder), output / "run")
    return output / "run" / "model"


@pytest.fixture
def mid(params, prepared_folder, start_model, tmp_path):
    """Runs an arm of mid-training into tmp_path/NAME; overrides as on the command line."""

    def run(name: str, arm: str = "refine", *overrides: str, callbacks=(), model: Path = start_model) -> dict:
        values = settings_module.load(params, overrides)
        return mid_training(values, arm, str(model), Prepared(prepared_folder), tmp_path / name, callbacks=callbacks)

    return run


WILD = ("training.mid.learning_rate=0.5", "training.mid.evaluate_every=1", "training.mid.checkpoint_every=1")


class StopAt:
    """Ends training with an error after a step, as a crash would."""

    def __new__(cls, step: int, event: str = "on_step_end"):
        from transformers import TrainerCallback

        def stop(self, args, state, control, **kwargs):
            if state.global_step == step:
                raise RuntimeError("crash")

        return type("StopAt", (TrainerCallback,), {event: stop})()


def test_a_run_leaves_model_tokenizer_record_and_series(mid, tmp_path, series, capfd):
    from transformers.utils import logging

    record = mid("run")
    assert "Loading weights" not in capfd.readouterr().err
    assert logging.is_progress_bar_enabled(), "bars of the user's own are off"
    output = tmp_path / "run"
    assert record == json.loads((output / "result.json").read_text())
    assert record["steps"] == 6 and record["tokens"] == 6 * 4 * 48 and record["arm"] == "refine" and record["seed"] == 1
    assert {"val/loss", "val/accuracy", "val/reward/cosine/mean", "train/reward/cosine/std"} <= set(record["metrics"])
    assert checkpoints.is_whole(output / "model") and (output / "model" / "tokenizer.json").is_file()
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
    assert len(losses) == 3, "the arms came out the same"
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
def test_a_crashed_run_resumes_to_the_same_bits_and_the_same_series(mid, tmp_path, weights, series, step):
    mid("whole")
    with pytest.raises(RuntimeError, match="crash"):
        mid("broken", callbacks=[StopAt(step)])
    mid("broken")
    assert weights(tmp_path / "broken" / "model") == weights(tmp_path / "whole" / "model")
    assert series(tmp_path / "broken") == series(tmp_path / "whole")


def test_an_incomplete_checkpoint_is_passed_over(mid, tmp_path, weights, caplog):
    mid("whole")
    with pytest.raises(RuntimeError, match="crash"):
        mid("broken", callbacks=[StopAt(5)])
    (tmp_path / "broken" / "checkpoint-4" / "optimizer.pt").write_bytes(b"half")
    mid("broken")
    assert "checkpoint-4 is incomplete and is ignored" in caplog.text
    assert weights(tmp_path / "broken" / "model") == weights(tmp_path / "whole" / "model")


def test_a_run_that_crashed_after_its_last_step_only_finishes(mid, tmp_path, weights, series):
    mid("whole")
    with pytest.raises(RuntimeError, match="crash"):
        mid("broken", callbacks=[StopAt(6, "on_train_end")])
    assert not (tmp_path / "broken" / "model").exists()
    record = mid("broken")
    assert record["steps"] == 6
    assert weights(tmp_path / "broken" / "model") == weights(tmp_path / "whole" / "model")
    assert series(tmp_path / "broken") == series(tmp_path / "whole")


def test_the_best_checkpoint_is_the_result_where_that_is_asked_for(mid, tmp_path, weights, series):
    """At a learning rate that ruins the model, the best validation is an early one."""
    wild = (*WILD, "training.mid.steps=2")
    record = mid("best", "sft", *wild, "training.mid.keep=best")
    losses = {row["step"]: row["val/loss"] for row in series(tmp_path / "best") if "val/loss" in row and row["step"]}
    best = min(losses, key=losses.__getitem__)
    assert best == 1 and record["best_step"] == best and record["metrics"]["val/loss"] == losses[best]
    assert weights(tmp_path / "best" / "model") == weights(tmp_path / "best" / f"checkpoint-{best}")
    last = mid("last", "sft", *wild)
    assert last["metrics"]["val/loss"] == losses[2]


def test_a_run_that_gets_no_better_stops_early_and_stays_stopped(mid, tmp_path, weights, series):
    wild = WILD
    record = mid("whole", "sft", *wild, "training.mid.steps=20", "training.mid.early_stop_after=2")
    assert 2 < record["steps"] < 20
    losses = [row["val/loss"] for row in series(tmp_path / "whole") if "val/loss" in row]
    assert min(losses[-2:]) >= min(losses[1:-2])
    with pytest.raises(RuntimeError, match="crash"):
        mid("broken", "sft", *wild, "training.mid.steps=20", "training.mid.early_stop_after=2",
            callbacks=[StopAt(record["steps"], "on_train_end")])  # fmt: skip
    again = mid("broken", "sft", *wild, "training.mid.steps=20", "training.mid.early_stop_after=2")
    assert again["steps"] == record["steps"]
    assert weights(tmp_path / "broken" / "model") == weights(tmp_path / "whole" / "model")
    assert series(tmp_path / "broken") == series(tmp_path / "whole")


def test_a_finished_run_does_nothing(mid, tmp_path):
    first = mid("run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != ".lock"}
    assert mid("run") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != ".lock"} == before


def test_a_changed_setting_never_goes_on_from_a_stale_checkpoint(mid, tmp_path):
    with pytest.raises(RuntimeError, match="crash"):
        mid("run", callbacks=[StopAt(3)])
    with pytest.raises(
        TrainingError, match=r"run holds a run with settings\.learning_rate 0\.01 \(now 0\.02\)"
    ) as error:
        mid("run", "refine", "training.mid.learning_rate=0.02")
    assert "\n" not in str(error.value)
    with pytest.raises(TrainingError, match=r"arm 'refine' \(now 'sft'\)"):
        mid("run", "sft")


@pytest.mark.parametrize(
    "how", ["training.mid.sequences_per_pass=1", "training.mid.gradient_checkpointing=true", "training.processes=2"]
)
def test_a_run_goes_on_with_less_memory(mid, tmp_path, series, how):
    """What only changes how a step is computed is no other run: out of memory, one lowers it and starts again."""
    whole = mid("whole")
    with pytest.raises(RuntimeError, match="crash"):
        mid("run", callbacks=[StopAt(3)])
    record = mid("run", "refine", how)
    assert [row["step"] for row in series(tmp_path / "run")] == [row["step"] for row in series(tmp_path / "whole")]
    assert record["identity_hash"] == whole["identity_hash"]
    assert record["metrics"]["val/loss"] == pytest.approx(whole["metrics"]["val/loss"], rel=1e-4)


def test_a_disk_that_is_full_between_checkpoints_is_one_line(mid, monkeypatch):
    """Metrics are written at every step, whatever becomes of the checkpoints."""
    import errno

    from refine.training.callbacks import Series

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Series, "on_log", full)
    with pytest.raises(TrainingError, match=r"cannot write .*run: No space left on device; free space") as error:
        mid("run")
    assert "\n" not in str(error.value)


def test_other_data_or_another_start_never_goes_on_from_a_stale_checkpoint(
    mid, tmp_path, params, prepared_folder, start_model
):
    mid("run")
    other = shutil.copytree(prepared_folder, tmp_path / "other")
    shutil.copy(other / "documents" / "validation.parquet", other / "documents" / "train.parquet")
    with pytest.raises(TrainingError, match=r"other data\.train_hash"):
        mid_training(settings_module.load(params), "refine", str(start_model), Prepared(other), tmp_path / "run")
    with pytest.raises(TrainingError, match=r"other start\.model_hash"):
        mid("run", model=tmp_path / "run" / "model")


def test_the_list_of_arms_is_not_part_of_an_arm_s_identity(mid):
    mid("run")
    assert mid("run", "refine", "training.mid.arms=[refine]")["steps"] == 6


def test_two_processes_do_not_write_to_one_folder(mid, tmp_path):
    from refine.training import output

    mid("run")
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys, time; file = open(sys.argv[1], 'a+'); fcntl.flock(file, fcntl.LOCK_EX);"
            "file.truncate(0); file.write('4711'); file.flush(); print('held', flush=True); time.sleep(600)",
            str(tmp_path / "run" / ".lock"),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(TrainingError, match="being trained into by process 4711"),
            output.locked(tmp_path / "run", 0.2),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()
    with output.locked(tmp_path / "run", 5):
        pass


def test_an_unwritable_output_folder_is_one_line(mid, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SettingError, match="cannot write to the output folder") as error:
        mid("file/run")
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_vocabulary_is_refused_before_anything_is_written(mid, tmp_path, start_model):
    other = shutil.copytree(start_model, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": 32000}))
    with pytest.raises(ModelError, match=r"vocabulary of 32000 pieces, but .*tokenizer has 64"):
        mid("run", model=other)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_with_another_tokenizer_is_refused(mid, tmp_path, start_model):
    other = shutil.copytree(start_model, tmp_path / "other")
    text = (other / "tokenizer.json").read_text().replace('"w63"', '"x63"')
    (other / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match="comes with another tokenizer"):
        mid("run", model=other)


def test_a_checkpoint_of_another_architecture_is_refused(mid, tmp_path, start_model):
    other = shutil.copytree(start_model, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    with pytest.raises(ModelError, match="llama"):
        mid("run", model=other)


def test_missing_data_says_how_to_make_it(params, tmp_path):
    with pytest.raises(DataError, match=r"tokenizer\.json is missing: make it with `dvc repro documents`"):
        start_training(settings_module.load(params), Prepared(tmp_path / "nowhere"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_full_disk_leaves_the_last_checkpoint_whole(mid, tmp_path, weights, monkeypatch):
    """A limit on the size of files stands in for a full disk: the third checkpoint's optimizer does not fit."""
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


def test_nothing_of_a_checkpoint_is_loaded_that_could_run_code(mid, tmp_path, monkeypatch):
    """Whatever torch.load is asked to read on resuming, it reads with weights_only."""
    import torch

    with pytest.raises(RuntimeError, match="crash"):
        mid("run", callbacks=[StopAt(3)])
    loaded, load = [], torch.load

    def watched(file, *args, **kwargs):
        loaded.append((os.path.basename(str(file)), kwargs.get("weights_only")))
        return load(file, *args, **kwargs)

    monkeypatch.setattr(torch, "load", watched)
    mid("run")
    assert {name for name, _ in loaded} == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert all(safe is True for _, safe in loaded)
