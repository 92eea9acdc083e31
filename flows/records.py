"""What the tasks of the flow hand on: small records that JSON can hold (paths, hashes, MLflow ids), never a tensor.

`Stages` names each stage's folder by the hash of what decides its result: settings, inputs and code. What lies
finished in its folder is not done again, whoever asks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from refine import paths
from refine.identity import code_hash, hash_of, hash_of_files
from refine.settings import Settings
from refine.training import mid_training, output, start_training
from refine.training.prepared import Prepared, model_identity

TRAINING_CODE = ("ops", "models", "objective", "training")
EVALUATION_CODE = ("ops", "models", "evaluation")


@dataclass(frozen=True)
class Stage:
    """A stage of the experiment. key: hash of what decides its result. folder: where that result lies, or will."""

    phase: str
    arm: str
    key: str
    folder: str

    @property
    def title(self) -> str:
        """`mid refine`: phase and arm, as runs are called in Prefect and MLflow."""
        return f"{self.phase} {self.arm}".strip()


@dataclass(frozen=True)
class Trained:
    """A trained model. model: its folder (or a hub name). metrics: the last of each that training logged."""

    stage: Stage
    model: str
    model_hash: str
    run_id: str = ""
    reused: bool = False
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scored:
    """An evaluated model. scored_on: hash of the documents and prompts; scores of the same can be compared."""

    stage: Stage
    arm: str
    scored_on: str
    run_id: str = ""
    reused: bool = False
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Stages:
    """The stages of one experiment with these settings, on the data prepared in `data`."""

    settings: Settings
    data: Prepared

    def start(self) -> Stage:
        """Next-token training of a new model."""
        identity = start_training.identity(self.settings, self.data)
        return _stage("start", "", hash_of([identity, code_hash(*TRAINING_CODE)]))

    def mid(self, arm: str, model: str) -> Stage:
        """Mid-training of the starting model `model` (folder or hub name) in one arm."""
        identity = mid_training.identity(self.settings, arm, model, self.revision(model), self.data)
        return _stage("mid", arm, hash_of([identity, code_hash(*TRAINING_CODE)]))

    def evaluation(self, trained: Trained) -> Stage:
        """Evaluation of a trained model."""
        values = [trained.model_hash, self.scored_on(), code_hash(*EVALUATION_CODE)]
        return _stage("evaluation", trained.stage.arm, hash_of(values))

    def scored_on(self) -> str:
        """Hash of the documents, prompts and tokenizer that models are evaluated on."""
        folder = self.data.folder
        documents = [path for path in sorted(folder.glob("documents/*.parquet")) if path.stem != "train"]
        prompts = [path for path in (folder / "needles", folder / "questions") if path.exists()]
        return hash_of([hash_of_files(path) for path in (self.data.tokenizer, *documents, *prompts)])

    def revision(self, model: str) -> str | None:
        """The revision to take of `model`: the settings', where it is their hub checkpoint."""
        return self.settings.model.revision if model == self.settings.model.checkpoint else None

    def model_hash(self, model: str) -> str:
        """Hash of a checkpoint folder, or of a hub name with its revision."""
        return hash_of(model_identity(model, self.revision(model)))

    def frozen(self) -> Path:
        """The settings as a file that nobody edits while the experiment runs, for the processes that train."""
        text = yaml.safe_dump(self.settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        path = paths.runs() / f"params-{hash_of(text)}.yaml"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_suffix(f".{os.getpid()}.part")
            beside.write_text(text, encoding="utf-8")
            os.replace(beside, path)
        return path


def trained(stage: Stage, stages: Stages) -> Trained | None:
    """The record of a finished training stage, or None."""
    record = output.finished(Path(stage.folder))
    if record is None:
        return None
    model = str(Path(stage.folder) / output.MODEL)
    numbers: dict[str, Any] = {name: record[name] for name in ("steps", "tokens", "seconds", "metrics")}
    return Trained(stage, model, stages.model_hash(model), **numbers)


def _stage(phase: str, arm: str, key: str) -> Stage:
    return Stage(phase, arm, key, str(paths.runs() / "-".join(part for part in (phase, arm, key) if part)))
