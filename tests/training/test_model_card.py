"""A model card says what, from which data, with which settings and scores, its limits and its licence; hubs read it."""

from __future__ import annotations

import yaml

from refine.training.model_card import CARD, Card, attends, licence_of

SCORES = {
    "val/loss": 3.5, "val/loss_low": 3.4, "val/loss_high": 3.6, "val/sequences": 32.0, "eval/niah/256/score": 0.25,
    "eval/niah/256/samples": 20.0, "train/loss": 9.0, "val/reward/cosine/mean": 0.1,
}  # fmt: skip


def card(**more):
    values = {
        "title": "m: mid refine", "model_type": "delta_net", "phase": "mid", "arm": "refine", "parameters": 1_300_000,
        "made_from": "sample/delta_net", "data": {"train_hash": "abc"},
        "settings": {"steps": 20, "objective": {"k": 5}},
        "origin": {"git commit": "f00"}, "scores": SCORES, "licence": "apache-2.0",
    }  # fmt: skip
    return Card(**{**values, **more}).text()


def test_the_card_of_a_model_with_attention_says_what_of_its_memory_grows():
    assert "attention layers, which grow" in card(attends=True)
    assert "grow" not in card()


def test_every_model_with_attention_is_known_as_one():
    from refine.models.hybrids.model import HybridForCausalLM
    from refine.models.loading import MODELS

    hybrids = {kind for kind, model in MODELS.items() if issubclass(model, HybridForCausalLM)}
    assert {kind for kind in MODELS if attends({"model_type": kind})} == hybrids
    assert attends({"model_type": "delta_net", "attn": {"layers": [1], "num_heads": 2}})


def test_every_part_is_there():
    text = card()
    for part in ("# m: mid refine", "1,300,000 parameters", "sample/delta_net", "| train_hash | abc |",
                 "| objective.k | 5 |", "| git commit | f00 |", "## Limits", "## Licence\n\napache-2.0"):  # fmt: skip
        assert part in text, part
    assert "| val/loss | 3.5000 | 3.4000 to 3.6000 | 32 |" in text
    assert "| eval/niah/256/score | 0.2500 |  | 20 |" in text
    assert "train/loss" not in text and "mean" not in text


def test_the_header_is_what_the_hub_reads(tmp_path):
    from huggingface_hub import ModelCard

    data = ModelCard(card()).data
    assert data.license == "apache-2.0" and "delta_net" in data.tags and data.pipeline_tag == "text-generation"
    (tmp_path / CARD).write_text(card())
    assert licence_of(tmp_path) == "apache-2.0"


def test_without_a_licence_none_is_claimed(tmp_path):
    text = card(licence="")
    assert "license" not in yaml.safe_load(text.split("---")[1]) and "Nobody has stated one" in text
    (tmp_path / CARD).write_text(text)
    assert licence_of(tmp_path) == licence_of(tmp_path / "missing") == ""
    (tmp_path / CARD).write_text("---\n[: broken\n---\n")
    assert licence_of(tmp_path) == ""


def test_a_value_with_signs_of_a_table_stays_in_its_cell():
    assert "| a | x \\| y |" in card(settings={"a": "x | y"})


def test_a_shipped_model_s_licence_is_read():
    from refine import paths

    assert licence_of(paths.model("sample/delta_net")) == "apache-2.0"
