"""Readers of models, tokenizers and memories."""

from __future__ import annotations

import json
from pathlib import Path

from tests.hostile import mutations as bad
from tests.hostile.reader import Reader, sample_of
from tests.hostile.samples import (
    CONFIG,
    good_model,
    good_prepared,
    good_shards,
    memory_file,
    model_files,
    shard_index,
    tokenizer_files,
)


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


MODELS = (
    Reader("config.json, new model", "config.json", lambda: dict(CONFIG), bad.write_json, _from_config,
           names=("config",)),
    Reader("config.json, all fields", "model/config.json", sample_of(model_files, "config.json"), bad.write_json,
           _from_pretrained, good_model, names=("config", "model")),
    Reader("config.json, checked", "model/config.json", sample_of(model_files, "config.json"), bad.write_json,
           _check_model, good_prepared, names=("model",)),
    Reader("config.json, evaluated", "model/config.json", sample_of(model_files, "config.json"), bad.write_json,
           _evaluate_check, good_model, names=("config of", "model", "tokenizer")),
    Reader("weights", "model/model.safetensors", lambda: model_files()["model.safetensors"], bad.write_bytes,
           _from_pretrained, good_model, names=("model",)),
    Reader("shard index", "model/model.safetensors.index.json", lambda: json.loads(json.dumps(shard_index())),
           bad.write_json, _from_pretrained, good_shards, names=("model",)),
    Reader("tokenizer.json", "model/tokenizer.json", sample_of(tokenizer_files, "tokenizer.json"), bad.write_json,
           _load_tokenizer, good_model, names=("tokenizer",)),
    Reader("tokenizer_config.json", "model/tokenizer_config.json", sample_of(tokenizer_files, "tokenizer_config.json"),
           bad.write_json, _load_tokenizer, good_model, names=("tokenizer",)),
    Reader("tokenizer.json, prepared", "prepared/tokenizer/tokenizer.json",
           sample_of(tokenizer_files, "tokenizer.json"), bad.write_json, lambda path: _check_model(path.parent),
           good_prepared, names=("tokenizer",)),
    Reader("memory file", "memory.safetensors", memory_file, bad.write_bytes, _load_memory),
)  # fmt: skip
