"""`refine demo` prints the prompt, a row for each state and where rollouts start, and draws a picture."""

from __future__ import annotations

from click.testing import CliRunner

from refine.cli import demo_computation
from refine.cli.demo import WIDTH, demo, described
from tests.cli.demo_by_hand import made_by_hand


def test_a_run_prints_and_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_computation, "PROMPTS", 2)
    asked = ["--length", "256", "--steps", "1", "--output", str(tmp_path / "demo.png")]
    ran = CliRunner().invoke(demo, asked, catch_exceptions=False)
    assert ran.exit_code == 0
    for text in ("special magic number", "as it is", "1 step, next-token", "1 step, REFINE", "found of 2", "^ token"):
        assert text in ran.output
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["demo.png"]
    shown = [line for line in ran.output.splitlines() if not line.startswith("wrote ")]
    assert max(map(len, shown)) <= WIDTH


def test_the_rows_of_the_states():
    lines = described(made_by_hand())
    rows = [line.split() for line in lines if line.startswith(("as it is", "40 steps"))]
    assert [row[-3:] for row in rows] == [["0", "-0.50", "0"], ["1", "-0.50", "9"], ["2", "-0.50", "12"]]
    assert [("right" in row, "wrong" in row) for row in rows] == [(False, True), (False, True), (True, False)]
    assert next(line for line in lines if "REFINE and focus" in line)[29:43] == "7654321. One o"
    assert "  >>> One of the special magic numbers for grey-barn is: 7654321. <<<" in lines
    assert max(map(len, lines)) <= WIDTH


def test_signs_stand_under_the_entropy_of_their_tokens():
    lines = {line[:10].strip(): line[10:] for line in described(made_by_hand())}
    columns = len(lines["entropy"])
    assert lines["entropy"] == "▄" * 55 + "▂" * 13 and columns == 68
    assert [n for n, sign in enumerate(lines["published"]) if sign == "^"] == [30 * 68 // 100, 60 * 68 // 100]
    assert [n for n, sign in enumerate(lines["marks"]) if sign == "|"] == [80 * 68 // 100]
    assert lines["needles"].strip() == "=" * 5 and lines["needles"].index("=") == 40 * 68 // 100


def test_a_length_that_fits_no_needle_is_refused():
    ran = CliRunner().invoke(demo, ["--length", "20"])
    assert ran.exit_code != 0 and "192" in ran.output


def test_no_steps_are_refused():
    ran = CliRunner().invoke(demo, ["--steps", "0"])
    assert ran.exit_code != 0 and "--steps" in ran.output
