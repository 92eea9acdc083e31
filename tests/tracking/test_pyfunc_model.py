"""A registered version loads MLflow's way, and answers as the model itself does."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pandas
import pytest
import torch

from refine.errors import DataError, ModelError
from refine.tracking.champion import crown
from refine.tracking.registry import register


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random model with a tokenizer that reads words."""
    from refine.data.tokenizer import train_tokenizer
    from refine.models import from_config

    folder = tmp_path_factory.mktemp("written")
    tokenizer = train_tokenizer(["To be, or not to be, that is the question. " * 9], 270)
    torch.manual_seed(0)
    fields = {"model_type": "delta_net", "hidden_size": 32, "num_hidden_layers": 1, "num_heads": 2, "vocab_size": 270}
    from_config(fields).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def registered(client, experiment, folder, monkeypatch, home):
    """The champion of `m`, and MLflow's own functions pointed at its registry."""
    run = client.create_run(experiment).info.run_id
    version = register(
        client, "m", folder, key="k", run_id=run, experiment_id=experiment, metrics={}, settings={}, tags={}
    )
    crown(client, version, "only one")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    return "models:/m@champion"


def test_mlflow_loads_it_and_it_writes_what_the_model_writes(registered, folder):
    import mlflow

    from refine.data.tokenizer import load_tokenizer
    from refine.models import from_pretrained

    loaded = mlflow.pyfunc.load_model(registered)
    prompts = ["To be", "that is the question. To be, or not"]
    written = loaded.predict(pandas.DataFrame({"prompt": prompts}), params={"max_tokens": 5})["text"].tolist()
    tokenizer, model = load_tokenizer(folder), from_pretrained(folder)
    for prompt, text in zip(prompts, written, strict=True):
        ids = tokenizer(prompt)["input_ids"]
        read = model.read(torch.tensor([ids]))
        own = model.continue_greedily(read.memory, read.hidden[:, -1], 5)
        assert text == tokenizer.decode(own.tokens[0], skip_special_tokens=True)
        by_tokens = loaded.predict([{"tokens": ids}], params={"max_tokens": 5})
        assert by_tokens["text"].tolist() == [text]


def test_prompts_that_a_server_gets_as_one_list_are_rows(registered):
    import mlflow
    from mlflow.pyfunc import scoring_server

    loaded = mlflow.pyfunc.load_model(registered)
    apart = loaded.predict(pandas.DataFrame({"prompt": ["To be", "or not"]}), params={"max_tokens": 5})["text"].tolist()
    for sent in (
        '{"inputs": {"prompt": ["To be", "or not"]}}',
        '{"instances": [{"prompt": "To be"}, {"prompt": "or not"}]}',
    ):
        data, _ = scoring_server._split_data_and_params(sent)
        parsed = scoring_server.infer_and_parse_data(data, loaded.metadata.get_input_schema())
        assert loaded.predict(parsed, params={"max_tokens": 5})["text"].tolist() == apart


def test_sampling_depends_on_the_seed_alone(registered):
    import mlflow

    loaded = mlflow.pyfunc.load_model(registered)

    def written(seed: int) -> list[str]:
        wanted = {"max_tokens": 8, "temperature": 1.0, "seed": seed}
        return loaded.predict({"prompt": "To be"}, params=wanted)["text"].tolist()

    assert written(3) == written(3) != written(4)


def test_signature_example_and_no_pickles(registered, client):
    import mlflow

    info = mlflow.models.get_model_info(registered)
    assert [one.name for one in info.signature.inputs] == ["prompt", "tokens"]
    assert [one.name for one in info.signature.params] == ["max_tokens", "temperature", "seed"]
    assert info.flavors["python_function"]["loader_module"] == "refine.tracking.pyfunc_model"
    model = mlflow.pyfunc.load_model(registered)
    assert len(model.predict(model.input_example)) == 1
    names = os.listdir(mlflow.artifacts.download_artifacts(registered))
    assert {"MLmodel", "input_example.json", "config.json", "model.safetensors", "tokenizer.json"} <= set(names)
    assert not [name for name in names if name.endswith((".pkl", ".bin", ".pt"))]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (pandas.DataFrame({"text": ["a"]}), "the input has columns text; expected rows with a column `prompt`"),
        (pandas.DataFrame(), "the input has columns without names"),
        (pandas.DataFrame({"prompt": [""]}), "row 0: expected rows"),
        (pandas.DataFrame({"prompt": ["a", 3]}), "row 1: expected rows"),
        (pandas.DataFrame({"tokens": [[1, 999]]}), "row 0: tokens: expected token ids from 0 to 269"),
        (pandas.DataFrame({"tokens": [[]]}), "row 0: tokens: expected token ids"),
        (pandas.DataFrame({"tokens": ["ab"]}), "row 0: tokens: expected a list of token ids"),
        (pandas.DataFrame({"prompt": ["a"], "tokens": [[1]]}), "one of the two"),
    ],
)
def test_wrong_input_is_one_line(folder, rows, said):
    from refine.tracking.pyfunc_model import TextModel

    with pytest.raises(DataError) as refused:
        TextModel(str(folder)).predict(rows)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_wrong_params_are_one_line(folder):
    from refine.tracking.pyfunc_model import TextModel

    model, prompt = TextModel(str(folder)), pandas.DataFrame({"prompt": ["a"]})
    for params in ({"max_tokens": 0}, {"max_tokens": 10**9}, {"temperature": -1.0}):
        with pytest.raises(ModelError):
            model.predict(prompt, params)


def test_a_fresh_process_that_knows_mlflow_alone_predicts(registered, tmp_path):
    """`mlflow models predict`, as a person types it: the package is found by the name in MLmodel."""
    (tmp_path / "in.json").write_text(json.dumps({"dataframe_records": [{"prompt": "To be"}]}))
    command = [sys.executable, "-m", "mlflow", "models", "predict", "--env-manager", "local", "-m", registered]
    done = subprocess.run(
        [*command, "-i", str(tmp_path / "in.json"), "-t", "json"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout.strip().splitlines()[-1])["predictions"][0]) == ["text"]
