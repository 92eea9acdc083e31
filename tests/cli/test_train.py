"""`refine train`: what is wrong is one line and nothing written; a run says what it wrote and what comes next."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from refine.cli.main import main

SHORT = {"steps": 3, "sequences_per_step": 2, "sequences_per_pass": 2, "learning_rate": 1e-2, "checkpoint_every": 2,
         "evaluate_every": 2}  # fmt: skip


@pytest.fixture
def project(tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml and prepared data, as small as they get; the working directory."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    values = yaml.safe_load((checkout / "params.yaml").read_text(encoding="utf-8"))
    values["model"] = {"config": {"model_type": "delta_net", "hidden_size": 16, "num_hidden_layers": 1, "num_heads": 2}}
    values["training"]["start"] = SHORT
    values["training"]["mid"] = {**SHORT, "objective": {"positions": 2, "rollout_length": 2, "min_prefix": 4}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    tokenizer = Tokenizer(models.WordLevel({f"w{number}": number for number in range(40)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="w39").save_pretrained(
        tmp_path / "prepared" / "tokenizer"
    )
    (tmp_path / "prepared" / "documents").mkdir()
    rows = [[(5 * place + row) % 40 for place in range(24)] for row in range(4)]
    table = {
        "tokens": pa.array(rows, pa.list_(pa.int32())),
        "document": ["a", "b", "c", "d"],
        "offset": pa.array([0] * 4, pa.int64()),
    }
    for split in ("train", "validation"):
        pq.write_table(pa.table(table), tmp_path / "prepared" / "documents" / f"{split}.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that `refine ARGUMENTS` ends with."""
    with pytest.raises(SystemExit) as ending:
        main(arguments)
    assert ending.value.code != 0
    return capsys.readouterr().err.strip()


def test_start_then_mid_says_what_it_wrote_and_what_comes_next(project, capsys):
    with pytest.raises(SystemExit) as ending:
        main(["train", "start", "--output", "runs/start"])
    assert ending.value.code == 0
    said = capsys.readouterr().out
    assert "start  step 3/3" in said and "tokens/s" in said
    assert "wrote runs/start/model" in said
    following = said.strip().splitlines()[-1]
    assert following.startswith("next: refine train mid --arm refine --model runs/start/model --output")

    command = following.removeprefix("next: refine ").replace("OUTPUT", "runs/refine").split()
    with pytest.raises(SystemExit) as ending:
        main(command)
    assert ending.value.code == 0
    assert json.loads((project / "runs/refine/result.json").read_text())["steps"] == 3
    capsys.readouterr()

    with pytest.raises(SystemExit):
        main(command)
    assert "runs/refine is finished: nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["start", "-S", "training.start.step=3"], "did you mean 'steps'"),
        (["start", "-S", "training.start.steps=-1"], "training.start.steps"),
        (["start", "--params", "nowhere.yaml"], "nowhere.yaml: no such settings file"),
        (["start", "--data", "nowhere"], "make it with `dvc repro documents`"),
        (["mid", "--arm", "sft", "--model", "prepared"], "prepared: no config.json"),
        (["mid", "--arm", "sft", "--model", "no/such-model"], "no/such-model"),
        (["mid", "--arm", "best", "--model", "prepared"], "phase mid has no arm 'best'"),
        (["mid", "--arm", "sft"], "Missing option '--model'"),
        (["post", "--arm", "sft", "--model", "prepared"], "no prompts to train on: make prepared/questions"),
        (["post", "--arm", "sft", "--model", "prepared", "-S", "training.post=null"], "training.post is null"),
    ],
)
def test_what_the_user_got_wrong_is_said_and_nothing_is_written(project, capsys, arguments, line):
    assert line in refused(["train", *arguments, "--output", "runs/x"], capsys)
    assert not (project / "runs" / "x").exists()


def test_a_run_in_a_process_of_its_own_fails_with_the_line_the_user_can_mend(project):
    from refine.system.processes import ProcessFailed, run_in_own_process

    command = [sys.executable, "-m", "refine.cli.main", "train", "start", "--output", "runs/x", "--data", "nowhere"]
    with pytest.raises(ProcessFailed, match="make it with `dvc repro documents`") as failure:
        run_in_own_process(command, name="refine train start")
    assert failure.value.user_error and "Traceback" not in str(failure.value)


def test_wrong_settings_are_said_before_torch_is_imported(project):
    code = (
        "import sys; from refine.cli.main import main\n"
        "try: main(['train', 'start', '--output', 'x', '-S', 'training.start.step=3'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False" and "did you mean 'steps'" in done.stderr
