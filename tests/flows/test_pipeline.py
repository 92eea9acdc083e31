"""The flow with a real Prefect API: it records itself, resumes after a kill, and leaves no process behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.fixtures.flows import finished, runs, told

ALL = ["start", "mid none", "mid sft", "mid refine", "evaluation"]


def test_the_flow_compares_its_arms_and_runs_again_without_work(start, calls, workplace):
    code, out, err = finished(start())
    assert code == 0, err
    assert err == "" and "champion: refine-sample version 3 (mid refine), val/loss 3.4000" in out
    assert calls() == ALL
    rows = {file.stem: json.loads(file.read_text()) for file in (workplace / "results" / "metrics").iterdir()}
    assert rows["mid-refine"] == {"val/loss": 3.4, "eval/niah_single_1/256/score": 0.5}
    assert set(rows) == {"mid-none", "mid-sft", "mid-refine"}
    table = (workplace / "results" / "comparison.md").read_text()
    shown = [line.split() for line in table.splitlines()]
    assert ["refine", "3.400*", "[3.30,3.70]", "50"] in shown and ["sft", "3.500", "[3.30,3.70]", "50"] in shown
    assert ["champion"] in shown
    assert (workplace / "results" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    found = runs(workplace)
    assert set(found) == {"FINISHED"} and len(found["FINISHED"]) == 8
    parent = told(workplace, "refine-sample: none, sft, refine")
    assert parent.data.metrics["mid-refine/val/loss"] == 3.4 and parent.data.metrics["mid-none/val/loss"] == 3.6
    assert parent.data.metrics["mid-sft/eval/niah_single_1/256/score"] == 0.5
    assert "**refine-sample version 3 (mid refine)**" in parent.data.tags["mlflow.note.content"]
    assert "[3.30,3.70]" in parent.data.tags["mlflow.note.content"]
    code, _, err = finished(start())
    assert code == 0 and calls() == ALL, "a finished stage ran again"
    alive = [process.info for process in psutil.process_iter(["cmdline", "cwd"])]
    assert not [one for one in alive if "temporary_prefect" in str(one["cmdline"]) and one["cwd"] == str(workplace)]
    code, _, err = finished(start("-S", "training.mid.steps=29"))
    assert code == 0 and calls() == [*ALL, *ALL[1:-1]], (
        "changed stages run again, but the same weights were scored before"
    )
    assert "mid.steps=29: refine-sample: none, sft, refine" in runs(workplace)["FINISHED"]


def test_a_killed_training_is_retried(start, plan, calls):
    plan({"mid sft": ["die"]})
    code, _, err = finished(start())
    assert code == 0, err
    assert calls() == ["start", "mid none", "mid sft", "mid sft", "mid refine", "evaluation"]


def test_an_error_that_the_user_must_correct_is_one_line_and_no_retry(start, plan, calls, workplace):
    plan({"mid none": ["user error"]})
    code, _, err = finished(start())
    assert code == 1 and err == "error: refine train mid none: model.config: no such thing\n"
    assert calls() == ["start", "mid none"]
    assert not (workplace / "results" / "metrics").exists()
    assert sorted(runs(workplace)["FAILED"]) == ["mid none", "refine-sample: none, sft, refine"]


def test_no_process_outlives_a_killed_flow_and_the_next_one_resumes(start, plan, calls, workplace):
    plan({"mid none": ["sleep"]})
    process = start()
    deadline = time.monotonic() + 90
    while calls()[-1:] != ["mid none"] and time.monotonic() < deadline:
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    assert any("temporary_prefect" in " ".join(child.cmdline()) for child in family)
    assert any("trainer.py" in " ".join(child.cmdline()) for child in family)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive, "these processes outlived the flow"
    assert sorted(runs(workplace)["RUNNING"]) == ["mid none", "refine-sample: none, sft, refine"]
    code, _, err = finished(start())
    assert code == 0, err
    assert calls() == ["start", "mid none", "mid none", "mid sft", "mid refine", "evaluation"]
    found = runs(workplace)
    assert "RUNNING" not in found and found["KILLED"] == ["refine-sample: none, sft, refine"]


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (("-S", "training.mid.stepz=3"), {}, "unknown setting 'training.mid.stepz' (did you mean 'steps'?)"),
        (("-S", "registry.metric=val/los"), {}, "registry.metric: no version will have a metric 'val/los' (did you"),
        (("-S", "registry.guards={any/loss: 0.1}"), {}, "registry.guards.any/loss: no version will have a metric"),
        ((), {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}, "MLflow server http://127.0.0.1:9 does not answer"),
        ((), {"PREFECT_API_URL": "http://127.0.0.1:9/api"}, "Prefect server http://127.0.0.1:9/api does not answer"),
        ((), {"REFINE_HOME": "/proc/home"}, "cannot write to /proc/home"),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(start, calls, arguments, variables, message):
    started = time.monotonic()
    code, _, err = finished(start(*arguments, **variables))
    assert code == 1 and message in err and err.startswith("error: ") and err.count("\n") == 1
    assert calls() == [] and time.monotonic() - started < 30, "it should not wait for servers that are not there"


def test_missing_data_is_one_line_before_anything_starts(start, calls, workplace):
    (workplace / "prepared" / "documents" / "train.parquet").unlink()
    code, _, err = finished(start())
    assert code == 1 and "train.parquet is missing" in err and err.count("\n") == 1 and calls() == []


@pytest.mark.slow
def test_the_flow_runs_in_a_home_with_special_characters(start, calls, workplace):
    home = workplace / "my home [1] 100% #x ü"
    (home / "services").mkdir(parents=True)
    variables = {"REFINE_HOME": str(home), "PREFECT_HOME": str(home / "services" / "prefect")}
    code, out, err = finished(start("-S", "training.mid.arms=[refine]", **variables))
    assert code == 0 and err == "", err
    assert calls() == ["start", "mid refine", "evaluation"] and "champion: refine-sample version 1" in out
    assert (home / "mlflow.db").exists() and list((home / "mlartifacts").rglob("model.safetensors"))
    assert (home / "services" / "prefect" / "prefect.db").exists() and list((home / "runs").glob("mid-refine-*"))
    assert not (workplace / "home" / "mlflow.db").exists()


def test_the_flow_itself_imports_nothing_that_trains(checkout):
    code = "import sys, flows.pipeline; print(*{'torch', 'transformers', 'datasets'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], check=True, cwd=checkout, capture_output=True, text=True)
    assert ran.stdout.split() == []
