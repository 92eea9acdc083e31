"""`refine warm-up` on a machine without a GPU, and what it asks of its processes on one with."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from refine.cli import warm_up as module
from refine.cli.main import main
from refine.cli.warm_up import layer_shapes, warm_up
from refine.ops.delta_rule import fla


@pytest.fixture
def config(tmp_path):
    """A folder with a hybrid model's config, and no weights."""
    values = {"model_type": "gated_deltanet", "hidden_size": 64, "num_hidden_layers": 3, "num_heads": 2, "head_dim": 16}
    values |= {"vocab_size": 50, "num_v_heads": 4, "attn": {"layers": [1], "num_heads": 4}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    return tmp_path


def test_without_a_gpu_it_says_so_in_one_line(config):
    ran = CliRunner().invoke(warm_up, ["--model", str(config)], catch_exceptions=False)
    assert ran.exit_code == 0 and ran.output.startswith("no CUDA device: ") and ran.output.count("\n") == 1


def test_the_shapes_are_those_of_the_layers_without_their_weights(config):
    assert layer_shapes(str(config)) == [(2, 4, 16, 32, True, False)]
    (config / "config.json").write_text(
        json.dumps({"model_type": "delta_net", "hidden_size": 64, "num_heads": 2, "vocab_size": 9})
    )
    assert layer_shapes(str(config)) == [(2, 2, 32, 32, False, False)]
    (config / "config.json").write_text(
        json.dumps({"model_type": "comba", "hidden_size": 64, "num_heads": 2, "head_dim": 16, "vocab_size": 9})
    )
    assert layer_shapes(str(config)) == [], "PyTorch computes these"


def test_a_model_without_such_layers_has_nothing_to_compile():
    ran = CliRunner().invoke(warm_up, ["--model", "sample/lact"], catch_exceptions=False)
    assert ran.exit_code == 0 and "no layers with the delta rule" in ran.output


def test_a_model_that_does_not_exist_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["warm-up", "--model", str(tmp_path / "absent")])
    assert ended.value.code == 1 and capsys.readouterr().err.startswith("error: ")


def test_on_a_gpu_every_process_gets_its_share(config, monkeypatch):
    started = []

    class Child:
        returncode = 0

        def __init__(self, command, **options):
            started.append(command[-3:])

        def communicate(self):
            return json.dumps({"compiled": 5, "failed": ["a: b"]}), ""

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(fla, "chosen", lambda device, dtype: True)
    monkeypatch.setattr(module.subprocess, "Popen", Child)
    ran = CliRunner().invoke(warm_up, ["--model", str(config), "--processes", "3"], catch_exceptions=False)
    assert started == [["[[2, 4, 16, 32, true, false]]", str(rank), "3"] for rank in range(3)]
    assert "compiled 15 kernels for 1 shapes" in ran.output and "3 did not compile, for example: a: b" in ran.output
    assert ran.output.startswith("at most 8 configurations of each kernel (REFINE_TUNING=all: every one)\n")
    monkeypatch.setenv("REFINE_TUNING", "all")
    ran = CliRunner().invoke(warm_up, ["--model", str(config)], catch_exceptions=False)
    assert ran.output.startswith("every configuration of each kernel (REFINE_TUNING is all)\n")


def test_an_unknown_tuning_is_one_line_before_any_work(config, monkeypatch, capsys):
    monkeypatch.setenv("REFINE_TUNING", "none")
    with pytest.raises(SystemExit) as ended:
        main(["warm-up", "--model", str(config)])
    assert ended.value.code == 1
    assert capsys.readouterr().err.strip() == "error: REFINE_TUNING is 'none': expected few or all"
