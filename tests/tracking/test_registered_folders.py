"""A registered model is a model wherever one is named."""

from __future__ import annotations

import json

import pytest

from refine import paths
from refine.errors import ServiceError
from refine.models import from_pretrained
from refine.tracking.champion import crown
from refine.tracking.registered_folders import folder_of, local, pinned
from refine.tracking.registry import register


@pytest.fixture
def make(client, experiment, tiny_model, prepared_folder, tmp_path):
    """Registers a tiny model of its own weights as the next version of `m`."""
    from refine.data.tokenizer import load_tokenizer

    def make(number: int):
        folder = tmp_path / f"trained-{number}"
        model = tiny_model()
        model.model.embeddings.weight.data.fill_(float(number))
        model.save_pretrained(folder)
        load_tokenizer(prepared_folder / "tokenizer").save_pretrained(folder)
        run = client.create_run(experiment).info.run_id
        return register(client, "m", folder, key=str(number), run_id=run, experiment_id=experiment, metrics={},
                        settings={}, tags={})  # fmt: skip

    return make


def first_weight(name: str) -> float:
    return float(from_pretrained(name).model.embeddings.weight[0, 0].detach())


def test_from_pretrained_takes_alias_version_and_latest(client, make):
    crown(client, make(1), "the first")
    make(2)
    assert [first_weight(f"models:/m{one}") for one in ("@champion", "/1", "/2", "/latest")] == [1.0, 1.0, 2.0, 2.0]


def test_an_alias_that_moves_is_followed(client, make):
    crown(client, make(1), "first")
    assert pinned("models:/m@champion") == "models:/m/1"
    crown(client, make(2), "better")
    assert first_weight("models:/m@champion") == 2.0 and pinned("models:/m@champion") == "models:/m/2"


def test_a_version_is_copied_once_and_a_whole_folder(client, make, home):
    make(1)
    folder = folder_of("models:/m/1")
    assert folder.parent == home / "runs" / "registered" and paths.model("models:/m/latest") == folder
    made = (folder / "config.json").stat().st_mtime_ns
    assert folder_of("models:/m/1") == folder and (folder / "config.json").stat().st_mtime_ns == made
    assert [one.name for one in folder.parent.iterdir()] == [folder.name]


def test_tokenizer_and_checks_take_it_too(make, prepared_folder):
    from refine.data.tokenizer import load_tokenizer
    from refine.phases.prepared_data import Prepared, check_model, model_identity

    make(1)
    assert load_tokenizer("models:/m/1")("w1")["input_ids"] == [62, 1]
    check_model("models:/m/1", Prepared(prepared_folder))
    assert model_identity("models:/m/1", None) == model_identity(str(folder_of("models:/m/1")), None)


def test_other_names_are_left_as_they_are():
    assert local("sample/delta_net") == pinned("sample/delta_net") == "sample/delta_net"


def test_a_malformed_reference_never_reaches_mlflow(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(ServiceError, match="expected models:/NAME@ALIAS"):
        from_pretrained("models:/../x@champion")


def test_a_folder_that_asks_to_run_its_code_neither_asks_nor_runs_it(tiny_model, prepared_folder, tmp_path):
    """`auto_map` names a Python file of the folder. transformers would ask at a terminal whether to run it."""
    from refine.data.tokenizer import load_tokenizer
    from refine.evaluation.evaluate import check_model

    folder, ran = tmp_path / "foreign", tmp_path / "ran"
    tiny_model().save_pretrained(folder)
    load_tokenizer(prepared_folder / "tokenizer").save_pretrained(folder)
    (folder / "theirs.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "theirs.C", "AutoModelForCausalLM": "theirs.M", "AutoTokenizer": ["theirs.T", "theirs.F"]}
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": names}))
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": {"AutoTokenizer": names["AutoTokenizer"]}}))

    def refuse(*asked):
        raise AssertionError(f"asked {asked}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.input", refuse)
        from_pretrained(folder)
        check_model(folder, load_tokenizer(folder))
    assert not ran.exists()
