"""The models in the package: small, complete, documented, and able to recall what they were trained to."""

from __future__ import annotations

import json

import pytest
import torch

import refine.models
from refine import paths
from refine.data.prompts.needles import make_needles
from refine.data.prompts.tasks import known_task
from refine.data.tokenizer import load_tokenizer
from refine.errors import ModelError
from refine.evaluation.answers import answer
from refine.evaluation.scorers import scorer_of

NAMES = paths.shipped_models()


def test_a_deltanet_and_a_lact_are_among_them():
    assert {"delta_net", "lact"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_is_small_and_says_what_it_is(name):
    folder = paths.SHIPPED / name
    assert (folder / "model.safetensors").stat().st_size <= 10_000_000
    assert not {path.suffix for path in folder.iterdir()} - {".json", ".safetensors", ".md"}, "nothing that runs code"
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert all(word in card for word in ("license:", "Data", "Limits", "Scores", "n-gram"))
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    assert training["tokens"] > 1_000_000 and len(training["curve"]) > 50


@pytest.mark.parametrize("name", NAMES)
def test_each_loads_by_name_with_its_tokenizer(name):
    model, tokenizer = refine.models.from_pretrained(f"sample/{name}"), load_tokenizer(f"sample/{name}")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert 1_000_000 <= parameters <= 5_000_000
    assert len(tokenizer) == model.config.vocab_size
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_the_deltanet_recalls_needles_that_no_training_text_had():
    model = refine.models.from_pretrained("sample/delta_net", dtype=torch.float32).eval()
    tokenizer = load_tokenizer("sample/delta_net")
    prompts = make_needles("niah_single_1", 256, 16, tokenizer, seed=77, answer_tokens=12)
    scorer = scorer_of(known_task("niah_single_1"))
    found = [
        scorer(one.text, prompt.answers) for one, prompt in zip(answer(model, tokenizer, prompts), prompts, strict=True)
    ]
    assert sum(found) >= 2, "about 0 of 16 without a memory"


def test_an_unknown_one_names_those_there_are():
    with pytest.raises(ModelError, match=r"sample/delta_nett.*did you mean 'sample/delta_net'"):
        refine.models.from_pretrained("sample/delta_nett")
