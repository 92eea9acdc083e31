"""The benchmark beside other trainers runs to its end where they are installed, and says so where they are not."""

from __future__ import annotations

import importlib.util
import sys

import pytest
from click.testing import CliRunner

from benchmarks.peers import main

SMALL = ["--tokens", "96", "--positions", "2", "--rollouts", "2", "--rounds", "1", "--output"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs the extra `peers`")
def test_all_steps_are_measured_with_the_tokens_that_they_read(tmp_path):
    ran = CliRunner().invoke(main, [*SMALL, str(tmp_path / "peers.md")], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    rows = [line.split(" | ") for line in (tmp_path / "peers.md").read_text().splitlines() if " step, " in line]
    # positions 32 and 64; 4 rollouts of 5 tokens are 4 x 4 sampled and 4 x 5 scored; TRL pads both prefixes to 64
    assert [row[3] for row in rows] == ["96", "96", "132", "516", "548"]
    assert all(float(row[1]) > 0 for row in rows)


def test_without_them_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    ran = CliRunner().invoke(main, [*SMALL, str(tmp_path / "peers.md")])
    assert ran.exit_code == 1 and "pip install -e '.[peers]'" in ran.output
    assert not (tmp_path / "peers.md").exists()
