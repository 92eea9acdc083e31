"""The benchmark of a REFINE step runs to its end as it would on a GPU: the published kinds of model, in bfloat16."""

from __future__ import annotations

import re
import runpy
import sys


def test_the_table_for_a_gpu_is_written_with_the_kernels_in_use(tmp_path, monkeypatch, checkout):
    script = checkout / "benchmarks" / "refine_step.py"
    monkeypatch.syspath_prepend(str(script.parent))
    command = "--device cpu --shapes published --quick --rounds 1 --skip growth --output"
    monkeypatch.setattr(sys, "argv", [str(script), *command.split(), str(tmp_path / "table")])
    runpy.run_path(str(script), run_name="__main__")
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    for name in ("DeltaNet 1.3B", "LaCT 760M"):
        assert [f"| {name} | {t} | {c}, 5, {n} |" in table for t, c, n in ((4096, 8, 1), (16384, 64, 1))] == [True] * 2
        assert f"- {name}: " in table
    for way in ("delta rule by PyTorch", "window attention by blocks"):  # which kernel leads is the machine's affair
        assert re.search(rf"{way}; .*aten::\w*mm \d+%", table), way
    assert (tmp_path / "table.png").stat().st_size > 10_000
