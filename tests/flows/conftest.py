"""The flow with training and evaluation played by scripts of a second, which write what the real ones write."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

# refine train PHASE --output FOLDER ...: reads PLAN (a list of what to do at each start), appends to FOLDER/../calls.
TRAINER = """
import json, os, pathlib, signal, sys, time
given = dict(zip(sys.argv[3::2], sys.argv[4::2]))
phase, out = sys.argv[2], pathlib.Path(given["--output"])
arm = given.get("--arm", "")
name = (phase + " " + arm).strip()
with open(os.environ["CALLS"], "a") as calls:
    calls.write(name + "\\n")
plan = json.loads(pathlib.Path(os.environ["PLAN"]).read_text()).get(name, [])
done = pathlib.Path(os.environ["CALLS"]).read_text().splitlines().count(name)
act = plan[done - 1] if done <= len(plan) else "finish"
if act == "user error":
    print("error: model.config: no such thing"); sys.exit(1)
out.mkdir(parents=True, exist_ok=True)
steps = 0 if arm == "none" else 4
with open(out / "metrics.jsonl", "w") as file:
    for step in range(1, steps + 1):
        row = {"train/ntp_loss": 4.0 - step / 10, "train/tokens_per_second": 1000.0, "step": step, "epoch": 0.1}
        file.write(json.dumps(row) + "\\n"); file.flush()
        if act == "die" and step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    file.write(json.dumps({"val/loss": 3.6, "val/reward/cosine/mean": 0.3, "step": steps}) + "\\n")
(out / "reward_histograms.csv").write_text("data,reward,step,low,high,rollouts\\n")
if steps:
    kept = out / f"checkpoint-{steps}"
    kept.mkdir(exist_ok=True)
    for file in ("model.safetensors", "optimizer.pt", "trainer_state.json"):
        (kept / file).write_bytes(b"1")
    (kept / "complete.json").write_text(json.dumps({"model.safetensors": 1}))
if act == "sleep":
    time.sleep(600)
model = out / "model"
model.mkdir(exist_ok=True)
(model / "config.json").write_text(json.dumps({"model_type": "delta_net", "vocab_size": 300}))
(model / "model.safetensors").write_bytes(name.encode() * 9)
sizes = {file.name: file.stat().st_size for file in model.iterdir() if file.name != "complete.json"}
(model / "complete.json").write_text(json.dumps(sizes))
record = {"phase": phase, "arm": arm, "steps": steps, "tokens": 100 * steps, "seconds": 1.0,
          "metrics": {"val/loss": 3.6, "val/reward/cosine/mean": 0.3}}
(out / "result.json").write_text(json.dumps(record))
print(name + ": trained")
"""

# refine.phases.evaluation REQUEST: the arms' losses are 3.6, 3.5, 3.4 in the order of the request.
EVALUATOR = """
import json, os, pathlib, sys
request = json.loads(pathlib.Path(sys.argv[1]).read_text())
with open(os.environ["CALLS"], "a") as calls:
    calls.write("evaluation\\n")
for n, one in enumerate(request["models"]):
    assert (pathlib.Path(one["model"]) / "model.safetensors").exists()
    out = pathlib.Path(one["output"])
    out.mkdir(parents=True, exist_ok=True)
    metrics = {"val/loss": 3.6 - n / 10, "val/loss_low": 3.3, "val/loss_high": 3.7, "val/sequences": 32.0,
               "eval/niah_single_1/256/score": 0.5, "eval/niah_single_1/256/samples": 50.0}
    (out / "evaluation.json").write_text(json.dumps({"metrics": metrics, "seconds": 1.0}))
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch, checkout) -> Path:
    """A folder to run the flow in: params.yaml, prepared data, $REFINE_HOME, scripts in the place of training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFINE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("REFINE_LOCKS", str(tmp_path / "locks"))
    values = yaml.safe_load((checkout / "params.yaml").read_text())
    values["model"]["checkpoint"] = None  # so that stage `start` is there too
    values["training"] |= {"post": None, "test_time": None}  # tests that need these phases put them back
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    prepared = tmp_path / "prepared"
    (prepared / "tokenizer").mkdir(parents=True)
    vocabulary = {f"w{n}": n for n in range(300)}
    (prepared / "tokenizer" / "tokenizer.json").write_text(
        json.dumps({"added_tokens": [], "model": {"vocab": vocabulary}})
    )
    for split in ("train", "validation", "second_domain"):
        write_rows(prepared / "documents" / f"{split}.parquet", {"tokens": [split]})
    write_rows(prepared / "needles" / "niah_single_1_256.parquet", {"task": ["niah_single_1"], "prompt": ["w1"]})
    return tmp_path


def write_rows(path: Path, columns: dict[str, list]) -> None:
    """A parquet file with these columns."""
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), path)


@pytest.fixture
def plan(workplace, monkeypatch):
    """Play training by script; plan({"mid refine": ["die"]}) says what its first start does. Returns the calls made."""
    from flows import tasks

    for name, text in (("trainer.py", TRAINER), ("evaluator.py", EVALUATOR)):
        (workplace / name).write_text(text)
    monkeypatch.setattr(tasks, "REFINE", (sys.executable, str(workplace / "trainer.py")))
    monkeypatch.setattr(tasks, "EVALUATE", (sys.executable, str(workplace / "evaluator.py")))
    monkeypatch.setenv("CALLS", str(workplace / "calls"))
    monkeypatch.setenv("PLAN", str(workplace / "plan"))
    (workplace / "calls").write_text("")

    def set_plan(values: dict[str, list[str]]) -> None:
        (workplace / "plan").write_text(json.dumps(values))

    set_plan({})
    return set_plan


@pytest.fixture
def calls(workplace):
    """What was started, in order."""
    return lambda: (workplace / "calls").read_text().splitlines()


@pytest.fixture
def settings_with(workplace):
    """Settings of the sample, with changes: settings_with({"training": {"mid": {"steps": 9}}})."""
    from refine.settings import Settings, validated

    def build(changes: dict | None = None):
        values = yaml.safe_load((workplace / "params.yaml").read_text())
        _merge(values, changes or {})
        return validated(Settings, values)

    return build


def _merge(values: dict, changes: dict) -> None:
    for name, change in changes.items():
        if isinstance(change, dict):
            _merge(values[name], change)
        else:
            values[name] = change
