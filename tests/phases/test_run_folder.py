"""A run uses only an empty output folder or its own, and finishes once. Also: the checks of its model and data."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from refine import settings as settings_module
from refine.errors import DataError, ModelError, SettingError, TrainingError
from refine.phases import mid as mid_training
from refine.phases import run_folder, start
from refine.phases.prepared_data import Prepared
from refine.training import checkpoints


def test_a_finished_run_does_nothing(mid, tmp_path):
    first = mid("run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != ".lock"}
    assert mid("run") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != ".lock"} == before


def test_a_setting_that_came_later_does_not_make_an_older_run_another_one():
    before = {"phase": "mid", "settings": {"steps": 3}}
    same, other = ({**before, "settings": {"steps": 3, "freeze": what}} for what in ("none", "attention"))
    kept = [run_folder.without_execution_settings(one) for one in (before, same, other)]
    assert kept[0] == kept[1] != kept[2]


HASHES = ("files", "record_hash")


def test_a_result_notices_changed_bytes_of_what_it_vouches_for(mid, tmp_path, weights, caplog):
    record, output = mid("run"), tmp_path / "run"
    assert run_folder.finished(output) == record, caplog.text
    result, manifest = output / "result.json", output / "model" / "complete.json"
    before = weights(output / "model")
    model = output / "model" / "model.safetensors"
    whole = model.read_bytes()
    model.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert run_folder.finished(output) is None and "model.safetensors has other bytes" in caplog.text
    assert mid("run")["steps"] == record["steps"] and weights(output / "model") == before
    good = manifest.read_text()
    manifest.write_text(good + " ")
    assert run_folder.finished(output) is None and "complete.json has other bytes than when the run" in caplog.text
    manifest.write_text(good)
    values = json.loads(result.read_text())
    result.write_text(json.dumps(values | {"steps": 5}))
    assert run_folder.finished(output) is None and "not those that its record_hash" in caplog.text
    result.write_text(json.dumps({name: value for name, value in values.items() if name not in HASHES}))
    assert run_folder.finished(output)["steps"] == record["steps"], "an older record has no hashes"


@pytest.mark.parametrize(
    "change", [{"steps": None}, {"tokens": "1"}, {"metrics": []}, {"metrics": {"val/loss": "x"}}, {"files": 1}]
)
def test_a_record_of_another_form_does_not_count_as_finished(tmp_path, change, caplog):
    record = {"steps": 1, "tokens": 1, "seconds": 1.0, "metrics": {"val/loss": 1.0}}
    with checkpoints.written_completely(tmp_path / "model") as staging:
        (staging / "weights").write_bytes(b"1")
    (tmp_path / "result.json").write_text(json.dumps(record))
    assert run_folder.finished(tmp_path) == record
    (tmp_path / "result.json").write_text(json.dumps(record | change))
    assert run_folder.finished(tmp_path) is None
    assert f"the run in {tmp_path} does not count as finished: " in caplog.text


def test_a_changed_setting_never_resumes_from_a_stale_checkpoint(mid, tmp_path, stop_at):
    with pytest.raises(RuntimeError, match="crash"):
        mid("run", callbacks=[stop_at(3)])
    with pytest.raises(
        TrainingError, match=r"run holds a run with settings\.learning_rate 0\.01 \(now 0\.02\)"
    ) as error:
        mid("run", "refine", "training.mid.learning_rate=0.02")
    assert "\n" not in str(error.value)
    with pytest.raises(TrainingError, match=r"arm 'refine' \(now 'sft'\)"):
        mid("run", "sft")


def test_other_data_or_another_start_never_resumes_from_a_stale_checkpoint(
    mid, tmp_path, params, prepared_folder, start_model
):
    mid("run")
    other = shutil.copytree(prepared_folder, tmp_path / "other")
    shutil.copy(other / "documents" / "validation.parquet", other / "documents" / "train.parquet")
    with pytest.raises(TrainingError, match=r"other data\.train_hash"):
        plan = mid_training.plan(settings_module.load(params), "refine", str(start_model), Prepared(other))
        plan.run(tmp_path / "run")
    with pytest.raises(TrainingError, match=r"other start\.model_hash"):
        mid("run", model=tmp_path / "run" / "model")


def test_the_list_of_arms_is_not_part_of_an_arm_s_identity(mid):
    mid("run")
    assert mid("run", "refine", "training.mid.arms=[refine]")["steps"] == 6


def test_two_processes_do_not_write_to_one_folder(mid, tmp_path):
    mid("run")
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import pathlib, sys, time; from refine.system.locks import try_hold\n"
            "lock = try_hold(pathlib.Path(sys.argv[1]), '4711'); print('held', flush=True); time.sleep(600)",
            str(tmp_path / "run" / ".lock"),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(TrainingError, match="process 4711 is training into"),
            run_folder.locked(tmp_path / "run", 0.2),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()
    with run_folder.locked(tmp_path / "run", 5):
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
    with pytest.raises(ModelError, match="has another tokenizer"):
        mid("run", model=other)


def test_a_checkpoint_of_another_architecture_is_refused(mid, tmp_path, start_model):
    other = shutil.copytree(start_model, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    with pytest.raises(ModelError, match="llama"):
        mid("run", model=other)


def test_missing_data_says_how_to_make_it(params, tmp_path):
    with pytest.raises(DataError, match=r"tokenizer\.json is missing: make it with `dvc repro documents`"):
        start.plan(settings_module.load(params), Prepared(tmp_path / "nowhere"))
