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


def test_a_deltanet_a_lact_and_a_hybrid_are_among_them():
    assert {"delta_net", "lact", "hybrid"} <= set(NAMES)


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


@pytest.mark.parametrize("name", ["delta_net", "hybrid"])
def test_one_recalls_needles_that_no_training_text_had(name):
    model = refine.models.from_pretrained(f"sample/{name}", dtype=torch.float32).eval()
    tokenizer = load_tokenizer(f"sample/{name}")
    prompts = make_needles("niah_single_1", 256, 16, tokenizer, seed=77, answer_tokens=12)
    scorer = scorer_of(known_task("niah_single_1"))
    found = [
        scorer(one.text, prompt.answers) for one, prompt in zip(answer(model, tokenizer, prompts), prompts, strict=True)
    ]
    assert sum(found) >= 2, "about 0 of 16 without a memory"


def test_the_card_of_the_hybrid_says_how_its_memory_grows():
    model = refine.models.from_pretrained("sample/hybrid")
    with torch.no_grad():
        sizes = [model.read(torch.zeros(1, n, dtype=torch.long)).memory.nbytes for n in (1024, 4096)]
    card = (paths.SHIPPED / "hybrid" / "README.md").read_text(encoding="utf-8")
    first, last = (f"{n / 1024:.0f} KiB" for n in sizes)
    assert f"After 1,024 tokens it takes {first}, after 4,096 tokens {last}" in card
    assert f"{(sizes[1] - sizes[0]) // 3072} bytes a token" in card


def test_the_hybrid_reads_as_much_as_the_sample_and_the_demo_ask_for():
    assert refine.models.from_pretrained("sample/hybrid").config.position_limit() >= 8192


def test_an_unknown_one_names_those_there_are():
    with pytest.raises(ModelError, match=r"sample/delta_nett.*did you mean 'sample/delta_net'"):
        refine.models.from_pretrained("sample/delta_nett")
