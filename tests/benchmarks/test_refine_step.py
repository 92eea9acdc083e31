"""The benchmark of a REFINE step runs to its end as it would on a GPU: the published kinds of model, in bfloat16."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner

from benchmarks.refine_step import main


@pytest.mark.slow
def test_the_table_for_a_gpu_is_written_with_the_kernels_in_use(tmp_path):
    command = "--device cpu --shapes published --quick --rounds 1 --skip growth --output"
    ran = CliRunner().invoke(main, [*command.split(), str(tmp_path / "table")], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    for name in ("DeltaNet 1.3B", "LaCT 760M"):
        assert [f"| {name} | {t} | {c}, 5, {n} |" in table for t, c, n in ((4096, 8, 1), (16384, 64, 8))] == [True] * 2
        assert f"- {name}: " in table
    for way in ("delta rule by PyTorch", "window attention by blocks"):  # the machine decides which kernel leads
        assert re.search(rf"{way}; .*aten::\w*mm \d+%", table), way
    assert (tmp_path / "table.png").stat().st_size > 10_000


def test_a_quick_run_does_not_replace_the_measured_tables():
    ran = CliRunner().invoke(main, ["--quick"])
    assert ran.exit_code == 2 and "give --output" in ran.output
