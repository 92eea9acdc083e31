"""The readers that the hostile tests try: for each a good sample, the file to damage, and how the file is read."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.hostile import mutations as bad

CHECKOUT = Path(__file__).resolve().parents[2]
TOKENS, VOCABULARY = 24, 320
CONFIG = {"model_type": "delta_net", "hidden_size": 16, "num_hidden_layers": 2, "num_heads": 2, "vocab_size": 320}


@dataclass(frozen=True)
class Reader:
    """file: its place in a copy of the folder `good`. sample: the tree, columns or bytes that `write` damages.
    names: one of them, or the file's name, must be in a message."""

    name: str
    file: str
    sample: Callable[[], Any]
    write: bad.Write
    read: Callable[[Path], Any]
    good: Callable[[Path], Any] = lambda folder: None
    names: tuple[str, ...] = ()

    def damage(self, folder: Path, chance: random.Random | None) -> Path:
        """Fill `folder` and damage the file (with None: leave it good). Returns the file."""
        self.good(folder)
        path = folder / self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        if chance is not None:
            path.unlink(missing_ok=True)
            self.write(path, self.sample(), chance)
        elif not path.exists():
            self._write_good(path)
        return path

    def _write_good(self, path: Path) -> None:
        sample = self.sample()
        if self.write is bad.write_parquet:
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.table(sample), path)
        elif self.write is bad.write_lines:
            path.write_bytes(b"".join(bad.as_json(line) + b"\n" for line in sample))
        else:
            path.write_bytes(sample if isinstance(sample, bytes) else bad.as_json(sample))


# -- good files, made once ---------------------------------------------------------------------------------------------


@cache
def _tokenizer() -> dict[str, bytes]:
    """The files of a small tokenizer."""
    import tempfile

    from refine.data.tokenizer import train_tokenizer

    made = train_tokenizer([(CHECKOUT / "README.md").read_text(encoding="utf-8")], VOCABULARY - 20)
    with tempfile.TemporaryDirectory() as folder:
        made.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@cache
def _model() -> dict[str, bytes]:
    """The files of a tiny model."""
    import tempfile

    from refine.models import from_config

    with tempfile.TemporaryDirectory() as folder:
        from_config(CONFIG).save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@cache
def _memory() -> bytes:
    import tempfile

    from refine.models import from_config

    with tempfile.TemporaryDirectory() as folder:
        from_config(CONFIG).fresh_memory(2).save(Path(folder) / "memory.safetensors")
        return (Path(folder) / "memory.safetensors").read_bytes()


def _put(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def good_model(folder: Path) -> None:
    """folder/model: config, weights, tokenizer."""
    _put(folder / "model", {**_model(), **_tokenizer()})


def good_shards(folder: Path) -> None:
    """folder/model with the weights in one shard and an index."""
    good_model(folder)
    (folder / "model" / "model.safetensors").rename(folder / "model" / "model-1.safetensors")
    (folder / "model" / "model.safetensors.index.json").write_bytes(bad.as_json(_index()))


def good_prepared(folder: Path) -> None:
    """folder/prepared: tokenizer and documents; folder/model."""
    good_model(folder)
    _put(folder / "prepared" / "tokenizer", _tokenizer())


@cache
def _index() -> dict[str, Any]:
    from refine.models import from_config

    names = [name for name, _ in from_config(CONFIG).named_parameters()]
    return {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "model-1.safetensors")}


def _sample_of(files: Callable[[], dict[str, bytes]], name: str) -> Callable[[], Any]:
    return lambda: json.loads(files()[name])


def _yaml_of(path: Path) -> Callable[[], Any]:
    return lambda: yaml.safe_load(path.read_text(encoding="utf-8"))


def _prompts() -> dict[str, list[Any]]:
    return {
        "prompt": ["The key is 7. The key is", "Name it."], "answers": [["7"], ["x", "y"]],
        "task": ["niah_single_1"] * 2, "length": [64, 64], "answer_tokens": [4, 4], "prompt_tokens": [9, 4],
        "depths": [[50.0], [10.0]],
    }  # fmt: skip


def _sequences() -> dict[str, list[Any]]:
    return {"tokens": [list(range(TOKENS))] * 3, "document": ["a", "b", "c"], "offset": [0, 0, 24]}


def _evaluation() -> dict[str, Any]:
    estimate = {"value": 0.5, "samples": 2, "low": 0.1, "high": 0.9}
    task = {
        "task": "niah_single_1", "length": 64, "score": estimate, "log_prob": estimate, "cut": 0, "scores": [0.0, 1.0],
        "log_probs": [-1.0, -2.0], "adapt_seconds": 0.0,
    }  # fmt: skip
    position = {
        "first": 2, "last": 16, "loss": 1.5, "accuracy": 0.5, "tokens": 30, "loss_interval": [1.0, 2.0],
        "sequence_losses": [1.0, 2.0],
    }  # fmt: skip
    score = {
        "loss": 1.5, "accuracy": 0.5, "tokens": 30, "sequences": 2, "by_position": [position],
        "loss_interval": [1.0, 2.0], "accuracy_interval": None, "sequence_losses": [1.0, 2.0],
        "sequence_tokens": [15, 15],
    }  # fmt: skip
    harness = {"task": "piqa", "metric": "acc", "value": 0.5, "error": 0.1, "samples": 4}
    return {
        "model": "m", "next_token": {"val": score}, "tasks": [task], "harness": [harness], "seconds": 1.0,
        "settings": {"scored_on": "x"},
    }  # fmt: skip


IDENTITY = {"phase": "mid", "arm": "sft", "seed": 1, "settings": {"steps": 2, "objective": {"positions": 3}}}
RESULT = {**IDENTITY, "identity_hash": "0" * 16, "steps": 2, "tokens": 10, "seconds": 1.0, "metrics": {"val/loss": 1.0}}
REQUEST = {
    "data": "prepared", "batch_size": 2, "seed": 1, "test_time": None,
    "models": [{"name": "m", "model": "model", "output": "out", "adapted_by": ""}],
}  # fmt: skip
LONGBENCH = {"context": "Rain fell. {It} rained.", "input": "What fell?", "answers": ["Rain"], "length": 5, "_id": "7"}
SQUAD = {
    "version": "v2.0",
    "data": [{"title": "T", "paragraphs": [{"context": "Rain fell.", "qas": [
        {"id": "1", "question": "What?", "answers": [{"text": "Rain", "answer_start": 0}], "is_impossible": False}]}]}],
}  # fmt: skip
HOTPOT = [{
    "_id": "1", "question": "What?", "answer": "Rain", "supporting_facts": [["A", 0]],
    "context": [["A", ["Rain fell."]], ["B", ["Sun shone."]]],
}]  # fmt: skip


# -- how each is read --------------------------------------------------------------------------------------------------


def _load_params(path: Path) -> None:
    from refine import settings
    from refine.identity import hash_of

    hash_of(settings.load(path).model_dump(mode="json"))


def _load_recipe(path: Path) -> None:
    from refine import settings
    from refine.identity import hash_of

    hash_of(settings.load_recipe(path).model_dump(mode="json"))


def _data_version(path: Path) -> None:
    from refine.data.corpus import version
    from refine.identity import data_version

    data_version(path)
    found = version.recorded(path)
    if found is not None:
        version.differences(found, version.Version("0.dir", {"train.parquet": "0"}))


def _from_config(path: Path) -> None:
    import torch

    from refine.models import from_config

    with torch.device("meta"):
        from_config(path)


def _from_pretrained(path: Path) -> None:
    from refine.models import from_pretrained

    from_pretrained(path.parent)


def _check_model(path: Path) -> None:
    from refine.phases.prepared_data import Prepared, check_model

    top = path.parent.parent
    prepared = top if top.name == "prepared" else top / "prepared"
    check_model(str(prepared.parent / "model"), Prepared(prepared))


def _evaluate_check(path: Path) -> None:
    from refine.evaluation.evaluate import check_model, model_tokenizer

    check_model(path.parent, model_tokenizer(path.parent))


def _load_tokenizer(path: Path) -> None:
    from refine.data.tokenizer import load_tokenizer

    load_tokenizer(path.parent)("the grass")


def _load_memory(path: Path) -> None:
    from refine.models.memory import Memory

    memory = Memory.load(path)
    assert memory.rows >= 0
    assert memory.nbytes >= 0


def _run_folder(path: Path) -> None:
    from refine.phases import run_folder

    run_folder.finished(path.parent)
    run_folder.check(path.parent, IDENTITY)


def _whole(path: Path) -> None:
    from refine.training import checkpoints

    checkpoints.is_complete(path.parent)
    checkpoints.last_complete(path.parent.parent)


def good_checkpoint(folder: Path) -> None:
    """folder/checkpoint-1 with its manifest; folder/identity.json."""
    _put(folder / "checkpoint-1", {"trainer_state.json": b"{}", "complete.json": b'{"trainer_state.json": 2}'})


def good_finished(folder: Path) -> None:
    """A finished run."""
    _put(folder, {"identity.json": bad.as_json(IDENTITY), "result.json": bad.as_json(RESULT)})
    _put(folder / "model", {"complete.json": b"{}"})


def _services_state(path: Path) -> None:
    import os

    from refine.system.local_services import services_state

    before = os.environ.get("REFINE_HOME")
    os.environ["REFINE_HOME"] = str(path.parent.parent)
    try:
        services_state().get("prefect_api")
    finally:
        os.environ.pop("REFINE_HOME")
        if before is not None:
            os.environ["REFINE_HOME"] = before


def _load_evaluation(path: Path) -> None:
    from refine.evaluation.record import Evaluation
    from refine.reports.evaluations import find_in_folder
    from refine.reports.paper_files import as_markdown
    from refine.reports.paper_tables import tables

    found = Evaluation.load(path)
    found.metrics()
    found.table()
    as_markdown(tables(find_in_folder(path.parents[2])), "title")


def _load_sequences(path: Path) -> None:
    from refine.data.token_sequences import load_token_sequences
    from refine.evaluation.next_token import token_rows
    from refine.training.arguments import RefineArguments
    from refine.training.dataset import rows_of

    found = load_token_sequences(path)
    token_rows(found)
    rows = rows_of(found, None, RefineArguments(output_dir="nowhere", use_cpu=True, report_to=[]))
    for number in range(len(rows)):
        rows[number]


def _raw_documents(path: Path) -> None:
    from refine.data.raw_documents import read_documents

    for name, text, _ in read_documents(path):
        assert isinstance(name, str)
        assert isinstance(text, str)


def _load_prompts(path: Path) -> None:
    from refine.data.prompts.prompt import load_prompts
    from refine.evaluation.inputs import find_prompts

    find_prompts(path.parent)
    for prompt in load_prompts(path):
        assert isinstance(prompt.prompt, str)
        assert all(isinstance(one, str) for one in prompt.answers)
        assert all(isinstance(one, int) and one > 0 for one in (prompt.length, prompt.answer_tokens))


def _parquet_source(path: Path) -> None:
    from refine.data.corpus.sources import read_source
    from refine.settings.data import ParquetSource

    for one in read_source(ParquetSource(path=str(path), title_column="title")):
        assert isinstance(one.text, str)


def _essays(path: Path) -> None:
    from refine.data.prompts.essays import read_essays

    assert all(isinstance(text, str) for text in read_essays(path))


def _longbench(path: Path) -> None:
    from refine.data.prompts.longbench import load_longbench

    for prompt in load_longbench("qasper", path.parent, 512):
        assert all(isinstance(answer, str) and answer for answer in prompt.answers)


def _squad(path: Path) -> None:
    from refine.data.prompts.multi_document_qa import read_squad

    _pool(read_squad(path))


def _hotpotqa(path: Path) -> None:
    from refine.data.prompts.multi_document_qa import read_hotpotqa

    _pool(read_hotpotqa(path))


def _pool(found: Any) -> None:
    assert all(isinstance(passage, str) for passage in found.passages)
    for question in found.questions:
        assert isinstance(question.query, str)
        assert all(isinstance(answer, str) for answer in question.answers)


def _metrics_reader(path: Path) -> None:
    from refine.tracking.relay import MetricsReader

    reader = MetricsReader(path)
    try:
        for step, metrics in reader.new_rows():
            assert isinstance(step, int)
            assert isinstance(metrics, dict)
    finally:
        reader.close()


def _outbox(path: Path) -> None:
    import os

    from refine.tracking import outbox
    from tests.hostile.fakes import Client

    before = os.environ.get("REFINE_HOME")
    os.environ["REFINE_HOME"] = str(path.parent.parent)
    try:
        outbox.deliver(Client())  # type: ignore[arg-type]
    finally:
        os.environ.pop("REFINE_HOME")
        if before is not None:
            os.environ["REFINE_HOME"] = before


def _request(path: Path) -> None:
    from refine.phases.evaluation import Request

    Request.read(path)


def _dvc_stages(path: Path) -> None:
    from refine.data.corpus.dvc_stages import stages

    assert all(isinstance(name, str) for name in stages(path))


def _pretraining(path: Path) -> None:
    from refine.phases.pretraining import prepared_of, record_of

    record_of(path.parent)
    prepared_of(path)


EVALUATION_ROW = {"step": 1, "train/loss": 1.0, "val/reward/cosine/histogram": [1, 2]}

READERS = (
    Reader("params.yaml", "params.yaml", _yaml_of(CHECKOUT / "params.yaml"), bad.write_yaml, _load_params),
    Reader("recipe", "recipe.yaml", _yaml_of(CHECKOUT / "refine/settings/recipes/delta_net.yaml"), bad.write_yaml,
           _load_recipe),
    Reader("data.dvc", "data.dvc", _yaml_of(CHECKOUT / "data.dvc"), bad.write_yaml, _data_version),
    Reader("dvc.yaml", "dvc.yaml", _yaml_of(CHECKOUT / "dvc.yaml"), bad.write_yaml, _dvc_stages),
    Reader("config.json, new model", "config.json", lambda: dict(CONFIG), bad.write_json, _from_config,
           names=("config",)),
    Reader("config.json, all fields", "model/config.json", _sample_of(_model, "config.json"), bad.write_json,
           _from_pretrained, good_model, names=("config", "model")),
    Reader("config.json, checked", "model/config.json", _sample_of(_model, "config.json"), bad.write_json,
           _check_model, good_prepared, names=("model",)),
    Reader("config.json, evaluated", "model/config.json", _sample_of(_model, "config.json"), bad.write_json,
           _evaluate_check, good_model, names=("config of", "model", "tokenizer")),
    Reader("weights", "model/model.safetensors", lambda: _model()["model.safetensors"], bad.write_bytes,
           _from_pretrained, good_model, names=("model",)),
    Reader("shard index", "model/model.safetensors.index.json", lambda: json.loads(json.dumps(_index())),
           bad.write_json, _from_pretrained, good_shards, names=("model",)),
    Reader("tokenizer.json", "model/tokenizer.json", _sample_of(_tokenizer, "tokenizer.json"), bad.write_json,
           _load_tokenizer, good_model, names=("tokenizer",)),
    Reader("tokenizer_config.json", "model/tokenizer_config.json", _sample_of(_tokenizer, "tokenizer_config.json"),
           bad.write_json, _load_tokenizer, good_model, names=("tokenizer",)),
    Reader("tokenizer.json, prepared", "prepared/tokenizer/tokenizer.json", _sample_of(_tokenizer, "tokenizer.json"),
           bad.write_json, lambda path: _check_model(path.parent), good_prepared, names=("tokenizer",)),
    Reader("memory file", "memory.safetensors", _memory, bad.write_bytes, _load_memory),
    Reader("identity.json", "identity.json", lambda: dict(IDENTITY), bad.write_json, _run_folder, good_finished,
           names=("holds", "output folder")),
    Reader("result.json", "result.json", lambda: dict(RESULT), bad.write_json, _run_folder, good_finished),
    Reader("complete.json", "checkpoint-1/complete.json", lambda: {"trainer_state.json": 2}, bad.write_json, _whole,
           good_checkpoint),
    Reader("state.json of the services", "services/state.json",
           lambda: {"prefect": "http://x", "prefect_api": "http://x/api", "mlflow": "http://y", "pool": "refine"},
           bad.write_json, _services_state),
    Reader("evaluation.json", "report/sft/1/evaluation.json", _evaluation, bad.write_json, _load_evaluation,
           names=("report", "evaluation")),
    Reader("evaluation request", "request.json", lambda: json.loads(json.dumps(REQUEST)), bad.write_json, _request),
    Reader("training.json of a pretraining", "training.json", lambda: {"made_from": {"settings": "x", "run": "y"}},
           bad.write_json, _pretraining),
    Reader("prepared sequences", "documents/train.parquet", _sequences, bad.write_parquet, _load_sequences,
           names=("row", "sequence", "data set")),
    Reader("raw documents", "data/train.parquet", lambda: {"id": ["a", "b"], "text": ["x", "y"]}, bad.write_parquet,
           _raw_documents),
    Reader("prompts", "niah_single_1_64.parquet", _prompts, bad.write_parquet, _load_prompts),
    Reader("a parquet source", "source.parquet", lambda: {"text": ["x", "y"], "title": ["a", "b"]}, bad.write_parquet,
           _parquet_source),
    Reader("essays, parquet", "essays.parquet", lambda: {"text": ["x", "y"]}, bad.write_parquet, _essays),
    Reader("essays, text", "essays.txt", lambda: "Rain fell. 🦊\n".encode() * 9, bad.write_bytes, _essays),
    Reader("LongBench's lines", "qasper.jsonl", lambda: [dict(LONGBENCH), dict(LONGBENCH)], bad.write_lines, _longbench,
           names=("qasper",)),
    Reader("SQuAD", "squad.json", lambda: json.loads(json.dumps(SQUAD)), bad.write_json, _squad),
    Reader("HotpotQA", "hotpot.json", lambda: json.loads(json.dumps(HOTPOT)), bad.write_json, _hotpotqa),
    Reader("metrics.jsonl", "metrics.jsonl", lambda: [dict(EVALUATION_ROW)] * 3, bad.write_lines, _metrics_reader),
    Reader("outbox", "unsent/run.jsonl",
           lambda: [{"step": 1, "metrics": {"a": 1.0}}, {"status": "FINISHED", "ended": 1}], bad.write_lines, _outbox),
)  # fmt: skip


def empty(folder: Path) -> Path:
    """`folder`, emptied."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
