"""The prepared data and the starting model of a run: this file finds, checks and hashes them before any heavy
import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refine import paths
from refine.errors import DataError, ModelError, reason
from refine.identity import hash_of_files
from refine.system.readers import in_form, mapping, read_json

TOKENIZER = "a fast tokenizer with its vocabulary"
PADDING = 256  # a model may pad its vocabulary by fewer pieces than this, or than a hundredth of them (Qwen: 267)


@dataclass(frozen=True)
class Prepared:
    """A folder of `refine prepare`: tokenizer/, documents/train.parquet, documents/validation.parquet."""

    folder: Path

    @property
    def tokenizer(self) -> Path:
        """Saved tokenizer."""
        return self.folder / "tokenizer"

    def documents(self, split: str) -> Path:
        """Token sequences of a split."""
        return self.folder / "documents" / f"{split}.parquet"

    def questions(self, split: str) -> list[Path]:
        """Files of questions with answers of a split ("train", "validation"), of all tasks and lengths."""
        folder = self.folder / "questions"
        return [path for path in paths.visible_files(folder, f"*_{split}.parquet") if path.parent == folder]

    def read_by(self, phase: str) -> list[Path]:
        """The files that a training of `phase` reads: documents, in post-training questions."""
        if phase == "post":
            return [*self.questions("train"), *self.questions("validation")]
        files = map(self.documents, ("train", "validation", "recall"))
        return [file for file in files if file.is_file()]

    def check(self, *splits: str) -> None:
        """Raises DataError: the tokenizer or the documents of one of `splits` are missing."""
        for path in (self.tokenizer / "tokenizer.json", *map(self.documents, splits)):
            if not path.is_file():
                raise DataError(
                    f"{path} is missing: make it with `dvc repro documents` (or `refine prepare`), or name another "
                    "folder with --data"
                )

    def identity(self) -> dict[str, str]:
        """Hashes of the training documents, the held-out documents that a training validates on, and the tokenizer."""
        hashes = {
            "train_hash": hash_of_files(self.documents("train")),
            "validation_hash": hash_of_files(self.documents("validation")),
            "tokenizer_hash": hash_of_files(self.tokenizer / "tokenizer.json"),
        }
        if self.documents("recall").is_file():
            hashes["recall_hash"] = hash_of_files(self.documents("recall"))
        return hashes

    def vocabulary(self) -> int:
        """Number of the tokenizer's pieces, including added ones."""
        file = self.tokenizer / "tokenizer.json"
        values = read_json(file, TOKENIZER)
        with in_form(file, TOKENIZER):
            added = {piece["content"] for piece in values.get("added_tokens") or ()}
            return len(_pieces(file).keys() | added)


def check_model(name: str, data: Prepared) -> None:
    """Raises ModelError: the folder `name` holds no model, or one with another vocabulary than the tokenizer of `data`.
    A hub name passes; `check_vocabulary` checks its model after the download."""
    folder = paths.model(name)
    if not folder.is_dir():
        return
    if not (folder / "config.json").exists():
        from refine.models.weights import refuse_adapters

        refuse_adapters(folder)
        raise ModelError(f"{folder}: no config.json: expected a checkpoint folder or a hub name")
    config = read_json(folder / "config.json", "the fields of a model's config", ModelError)
    check_vocabulary(name, config.get("vocab_size"), data)
    theirs, ours = folder / "tokenizer.json", data.tokenizer / "tokenizer.json"
    if theirs.is_file() and _pieces(theirs) != _pieces(ours):
        raise ModelError(
            f"{folder} has another tokenizer than {data.tokenizer}: prepare the data with tokenizer.path: {folder}, or "
            "start from a model with this vocabulary"
        )


def check_vocabulary(name: str, size: Any, data: Prepared) -> None:
    """Raises ModelError: `size`, the vocabulary of model `name`, does not fit the tokenizer of `data`."""
    pieces = data.vocabulary()
    if not isinstance(size, int) or not pieces <= size < pieces + max(PADDING, pieces // 100):
        raise ModelError(
            f"{name} has a vocabulary of {reason(repr(size), 40)} pieces, but {data.tokenizer} has {pieces}: prepare "
            "the data with the model's own tokenizer (tokenizer.path), or start from another model"
        )


def _pieces(tokenizer: Path) -> dict[str, int]:
    model = mapping(read_json(tokenizer, TOKENIZER).get("model"), str(tokenizer), TOKENIZER)
    return mapping(model.get("vocab"), f"{tokenizer}: model.vocab", "the tokenizer's pieces")


def model_identity(name: str, revision: str | None) -> dict[str, str]:
    """Hash of a checkpoint folder's config and weights, or a hub name with its revision."""
    folder = paths.model(name)
    if folder.is_dir():
        found = [path for path in folder.glob("*.safetensors") if not paths.is_hidden(Path(path.name))]
        weights = sorted([*found, folder / "config.json"])
        return {"model_hash": hash_of_files(*weights)}
    return {"model": name, "revision": revision or "main"}
