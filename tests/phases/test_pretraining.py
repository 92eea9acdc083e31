"""`refine pretrain` makes a model folder from a settings file. Started again, it resumes or does nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

import refine.models
from refine import paths, settings
from refine.data.tokenizer import load_tokenizer
from refine.errors import TrainingError
from refine.phases import pretraining

SHORT = {"steps": 3, "sequences_per_step": 2, "sequences_per_pass": 2, "learning_rate": 1e-3, "checkpoint_every": 2,
         "evaluate_every": 3}  # fmt: skip
RECIPE = {
    "seed": 1,
    "data": {
        "train": [{"kind": "package", "texts": "plays", "works": ["macbeth"]},
                  {"kind": "exercises", "texts": "plays", "documents": 12}],
        "validation": [{"kind": "package", "texts": "plays", "works": ["the-tempest"]}],
        "second_domain": [{"kind": "package", "texts": "milton", "works": ["areopagitica"]}],
    },
    "tokenizer": {"vocabulary": 400, "single_digits": True},
    "documents": {"sequence_length": 128, "packing": True, "validation_sequences": 2},
    "model": {"shifted_keys": True, "config": {"model_type": "delta_net", "hidden_size": 16, "num_hidden_layers": 1,
                                               "num_heads": 2}},
    "drill": {"train": [{"kind": "exercises", "texts": "plays", "documents": 8, "facts_share": 0, "recitals_share": 1}],
              "start": SHORT},
    "training": {"start": SHORT},
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretraining")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return folder, pretrain(folder)


def pretrain(folder: Path, *overrides: str) -> dict:
    """The record of a pretraining by the recipe in `folder`, with overrides."""
    values = settings.load_recipe(folder / "recipe.yaml", overrides)
    return pretraining.pretrain(values, pretraining.plan(values, folder / "out"), folder / "out")


def test_the_model_folder_holds_short_weights_a_tokenizer_and_how_it_was_trained(made):
    folder, record = made
    model = refine.models.from_pretrained(folder / "out" / "model")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert len(load_tokenizer(folder / "out" / "model")) == model.config.vocab_size == 400
    written = json.loads((folder / "out" / "model" / "training.json").read_text())
    assert written == record
    assert written["steps"] == 6 and written["tokens"] == sum(
        json.loads((folder / "out" / run / "result.json").read_text())["tokens"]
        for run in ("training", "drill/training")
    )
    assert [one["step"] for one in written["curve"]] == [1, 2, 3, 4, 5, 6]


def test_training_goes_on_from_the_drill(made):
    folder, _ = made
    drilled = refine.models.from_pretrained(folder / "out" / "drill" / "training" / "model")
    identity = json.loads((folder / "out" / "training" / "identity.json").read_text())
    from refine.phases.prepared_data import model_identity

    assert identity["start"] == model_identity(str(folder / "out" / "drill" / "training" / "model"), None)
    assert drilled.config.vocab_size == 400


def test_a_finished_pretraining_is_left_alone_and_another_one_s_folder_is_refused(made):
    folder, record = made
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*") if path.is_file()}
    assert pretrain(folder) == record
    after = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*") if path.is_file()}
    assert after == before
    with pytest.raises(TrainingError, match="learning_rate"):
        pretrain(folder, "training.start.learning_rate=0.1")


def test_a_folder_without_a_finished_training_is_named(tmp_path):
    with pytest.raises(TrainingError, match=r"training: no finished training: remove .* and start again"):
        pretraining._finished(tmp_path / "training")


@pytest.mark.parametrize("name", paths.shipped_models())
def test_the_recipes_of_the_shipped_models_are_complete(checkout: Path, name):
    recipe = settings.load_recipe(checkout / "refine" / "settings" / "recipes" / f"{name}.yaml")
    assert recipe.drill is not None and recipe.model.config is not None
    sample = settings.load(checkout / "params.yaml").data
    assert sample.validation == recipe.data.validation, "plays that the model has not read"
    read = {source.texts for source in (*recipe.data.train, *recipe.drill.train)}
    assert not read & {source.texts for source in sample.second_domain}, "the model has read this text"
