"""Every verb with bad options ends with click's usage (2) or one line, `error: ...` (1), before any work."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from refine.cli.main import cli, main
from tests.hostile.contract import LIMIT, time_limit

BAD = (
    "evaluate nowhere/at/all/here",
    "evaluate {model} --data nowhere",
    "evaluate {model} --lengths 1e9",
    "evaluate {model} --lengths 100000000000",
    "evaluate {model} --lengths ²",
    "evaluate {model} --lengths ,",
    "evaluate {model} --samples 100000000000000000000",
    "evaluate {model} --samples nan",
    "evaluate {model} --batch-size 0",
    "evaluate {model} --batch-size 10000000000000",
    "evaluate {model} --seed -1",
    "evaluate {model} --seed 99999999999999999999999",
    "evaluate {model} --tasks nothing_such",
    "evaluate {model} --device nope",
    "evaluate {model} --device meta",
    "evaluate {model} --device cuda:99",
    "evaluate {model} --data {data} --output {file}",
    "evaluate {model} --tokenizer nowhere/at/all/here",
    "evaluate models:/",
    "evaluate models:/x",
    "evaluate {model} --test-time sft --params {file}",
    "evaluate {model} --test-time sft --params {folder}",
    "evaluate {model} --test-time sft -S training.test_time.steps=1e30",
    "demo --length 1",
    "demo --length 100000000000",
    "demo --output {folder}/x.xyz",
    "demo --output {folder}",
    "demo --output {file}/x.png",
    "demo --model nowhere/at/all/here",
    "compare --picture x.bmp",
    "compare --picture {file}/x.png",
    "compare --params {file}",
    "report --folder {folder} --output {file}",
    "report --folder nowhere",
    "report --folder {folder} --experiment x",
    "promote 1 -S registry.metric=[1]",
    "promote 1 -S nothing",
    "promote 1 -S =",
    "promote 1 -S registry.minimum_gain=2001-99-99",
    "promote 1 -S seed={deep}",
    "promote 1 -S seed={digits}",
    "train start --output {folder} -S training.start.steps=1e30",
    "train mid --arm nope --model m --output {folder}",
    "train mid --arm sft --model {folder} --output {folder}/out --data {data}",
    "train mid --arm sft --model m --output {folder}/out -S training.mid.objective.positions=10000000000000",
    "train mid --arm sft --model m --output {folder}/out -S training.mid.sequences_per_step=100000000000",
    "train post --arm sft --model m --output {folder}/out --prompts {file} --data {data}",
    "pretrain --params {file} --output {folder}/out",
    "pretrain --output {folder}/out",
    "pretrain --params {long} --output {folder}/out",
    "prepare documents --data {long}",
    "train tiny --output {file}/x",
    "pretrain --params nowhere.yaml --output {folder}/out",
    "data fetch -S data=1",
    "prepare needles --data {file}",
    "prepare needles -S needles.lengths=[100000000000]",
    "no_such_verb",
)


@pytest.mark.parametrize("line", BAD)
def test_bad_options_end_in_one_line_before_any_work(line, tmp_path, monkeypatch, capfd, checkout):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "file").write_text("a file")
    monkeypatch.setenv("REFINE_HOME", str(tmp_path / "home"))
    (tmp_path / "params.yaml").write_bytes((checkout / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    values = {
        "model": "sample/delta_net", "data": "nowhere", "file": "file", "folder": "folder", "deep": "[" * 9000,
        "digits": "9" * 5000, "long": "x" * 5000,
    }  # fmt: skip
    with time_limit(LIMIT), pytest.raises(SystemExit) as ended:
        main(line.format(**values).split())
    said = capfd.readouterr().err.strip().splitlines()
    assert ended.value.code in (1, 2), said
    assert said[-1].startswith("error: " if ended.value.code == 1 else "Error: "), said
    assert len(said[-1]) < 2000
    assert not list(folder.rglob("*.safetensors"))


def test_a_file_name_with_a_line_break_is_told_on_one_line(tmp_path, capfd):
    with pytest.raises(SystemExit):
        main(["promote", "1", "--params", str(tmp_path / "a\nb\udcff")])
    said = capfd.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("error: ")


def test_help_of_every_verb_is_printed():
    for verb in ("evaluate", "demo", "compare", "report"):
        assert CliRunner().invoke(cli, [verb, "--help"]).exit_code == 0
