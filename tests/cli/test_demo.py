"""`refine demo`: three answers, the entropy with the sampled positions, and a picture. The model does not change."""

from __future__ import annotations

import torch
from click.testing import CliRunner

import refine.models
from refine.cli.demo import demo, demonstrate
from refine.data.tokenizer import load_tokenizer


def test_it_prints_three_answers_and_draws(tmp_path):
    ran = CliRunner().invoke(demo, ["--length", "256", "--output", str(tmp_path / "demo.png")], catch_exceptions=False)
    assert ran.exit_code == 0
    for text in ("special magic number", "as it is", "REFINE steps", "after test-time training", "^", "the text has"):
        assert text in ran.output
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["demo.png"]


def test_the_needle_is_in_the_prompt_and_the_model_does_not_change():
    model = refine.models.from_pretrained("sample/delta_net", dtype=torch.float32).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shown = demonstrate(model, load_tokenizer("sample/delta_net"), 256, seed=3)
    assert shown.prompt.answers[0] in shown.needle and shown.needle in shown.prompt.prompt
    first, last = shown.needle_at
    assert shown.prompt.answers[0] == "".join(shown.tokens[first : last + 1])[-7:]
    assert len(shown.entropy) == len(shown.tokens) <= 256
    assert [one.position for one in shown.rollouts] == sorted({one.position for one in shown.rollouts})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_length_that_fits_no_needle_is_refused():
    ran = CliRunner().invoke(demo, ["--length", "20"])
    assert ran.exit_code != 0 and "192" in ran.output
