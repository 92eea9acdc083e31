"""What a GPU machine runs, tried on the CPU: its phases end in time, and what they find is on record."""

from __future__ import annotations

import json
import time

import pytest
from click.testing import CliRunner

from benchmarks.on_gpu import LIMITS, Lines, main, run_phase, summary


def test_the_limits_fit_into_eight_minutes_if_the_fastest_kernels_were_compiled_before():
    assert sum(LIMITS.values()) - LIMITS["warm-up"] <= 8 * 65


def test_a_phase_is_ended_at_its_limit_with_all_that_it_started(tmp_path):
    start = time.monotonic()
    assert run_phase("kernels", tmp_path, 1.0, dry_run=True) == "time limit"
    assert time.monotonic() - start < 30


def test_lines_are_kept_one_by_one_and_become_a_summary(tmp_path, capsys):
    lines = Lines(tmp_path)
    lines.say(phase="environment", what="device", name="H100")
    lines.say(phase="environment", ended=0, seconds=3.0)
    lines.say(phase="kernels", ended="time limit", seconds=75.0)
    assert lines.read() == [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    text = summary(lines.read())
    assert "## environment\n\n- device: name H100\n- phase: ended 0, seconds 3.0\n" in text
    assert "## kernels\n\n- phase: ended time limit" in text


@pytest.mark.slow
@pytest.mark.parametrize("phases", [list(LIMITS)[:4], list(LIMITS)[4:]], ids=" ".join)
def test_every_phase_runs_to_its_end_without_a_gpu(phases, tmp_path):
    options = [word for phase in phases for word in ("--phases", phase)]
    ran = CliRunner().invoke(main, ["--output", str(tmp_path), "--dry-run", "--minutes", "60", *options])
    found = Lines(tmp_path).read()
    assert ran.exit_code == 0, [line for line in found if "error" in line]
    assert [line["phase"] for line in found if line.get("ended") == 0] == phases
    said = {line["what"] for line in found if "what" in line}
    if "kernels" in phases:
        assert {"versions", "kernels and twin: gated, K 128", "refine warm-up", "pytest -m requires_cuda"} <= said
        (asked,) = (line["asked about"] for line in found if "asked about" in line)
        assert asked == ["torch.bfloat16"]
    else:
        assert {"DeltaNet 1.3B", "LaCT 760M", "RefineTrainer", "decode LaCT 760M"} <= said
    assert (tmp_path / "cuda.md").read_text(encoding="utf-8").count("\n## ") == len(phases)
