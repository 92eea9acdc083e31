"""Good models, tokenizers and memories, made once, and folders that hold them."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from tests.hostile import mutations as bad
from tests.hostile.reader import CHECKOUT, put

TOKENS, VOCABULARY = 24, 320

CONFIG = {"model_type": "delta_net", "hidden_size": 16, "num_hidden_layers": 2, "num_heads": 2, "vocab_size": 320}


@cache
def tokenizer_files() -> dict[str, bytes]:
    """The files of a small tokenizer."""
    from refine.data.tokenizer import train_tokenizer

    made = train_tokenizer([(CHECKOUT / "README.md").read_text(encoding="utf-8")], VOCABULARY - 20)
    with tempfile.TemporaryDirectory() as folder:
        made.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@cache
def model_files() -> dict[str, bytes]:
    """The files of a tiny model."""
    from refine.models import from_config

    with tempfile.TemporaryDirectory() as folder:
        from_config(CONFIG).save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@cache
def memory_file() -> bytes:
    from refine.models import from_config

    with tempfile.TemporaryDirectory() as folder:
        from_config(CONFIG).fresh_memory(2).save(Path(folder) / "memory.safetensors")
        return (Path(folder) / "memory.safetensors").read_bytes()


@cache
def shard_index() -> dict[str, Any]:
    from refine.models import from_config

    names = [name for name, _ in from_config(CONFIG).named_parameters()]
    return {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "model-1.safetensors")}


def good_model(folder: Path) -> None:
    """folder/model: config, weights, tokenizer."""
    put(folder / "model", {**model_files(), **tokenizer_files()})


def good_shards(folder: Path) -> None:
    """folder/model with the weights in one shard and an index."""
    good_model(folder)
    (folder / "model" / "model.safetensors").rename(folder / "model" / "model-1.safetensors")
    (folder / "model" / "model.safetensors.index.json").write_bytes(bad.as_json(shard_index()))


def good_prepared(folder: Path) -> None:
    """folder/prepared: tokenizer and documents; folder/model."""
    good_model(folder)
    put(folder / "prepared" / "tokenizer", tokenizer_files())
