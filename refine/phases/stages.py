"""What the tasks of the flow hand on: small records that JSON can hold (paths, hashes, MLflow ids), never a tensor.

`Stages` names each stage's folder by the hash of what decides its result: settings, inputs and code. What lies
finished in its folder is not done again, whoever asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from refine import paths
from refine.errors import SettingError
from refine.identity import code_hash, hash_of, hash_of_files
from refine.phases import mid, post, run_folder, start
from refine.phases.prepared_data import Prepared, model_identity
from refine.settings import Settings
from refine.system.files import write_text

# The code that decides a result: every room or file that a stage imports (tests/phases/test_stages.py derives both
# from the imports). Settings count by their values; paths, errors and refine/system/ decide no result.
READING_CODE = ("data/hub", "data/prompts", "data/raw_documents", "data/token_sequences", "models", "ops")
TRAINING_CODE = (*READING_CODE, "metric_names", "objective", "phases", "training")
EVALUATION_CODE = (*READING_CODE, "data/tokenizer", "evaluation", "phases/evaluation")


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
class Target:
    """What is to be evaluated: a trained model, as it is or (`adapted_by` an arm of test-time training) adapted to each
    prompt before it answers."""

    stage: Stage
    model: Trained
    adapted_by: str = ""

    @property
    def phase(self) -> str:
        """Of the scores: what trained the model last, or test_time."""
        return "test_time" if self.adapted_by else self.model.stage.phase

    @property
    def arm(self) -> str:
        """Of the scores."""
        return self.adapted_by or self.model.stage.arm


@dataclass(frozen=True)
class Scored:
    """An evaluated target. scored_on: hash of the documents and prompts; scores of the same can be compared."""

    target: Target
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
        identity = start.identity(self.settings, self.data)
        return _stage("start", "", _key(identity))

    def mid(self, arm: str, model: str) -> Stage:
        """Mid-training of the starting model `model` (folder or hub name) in one arm."""
        identity = mid.identity(self.settings, arm, model, self.revision(model), self.data)
        return _stage("mid", arm, _key(identity))

    def post(self, arm: str, model: str) -> Stage:
        """Post-training of a mid-trained model in one arm, on all the training prompts that are prepared."""
        prompts, held_out = self.data.questions("train"), self.data.questions("validation")
        revision = self.revision(model)
        identity = post.identity(self.settings, arm, model, revision, self.data, prompts, held_out)
        return _stage("post", arm, _key(identity))

    def evaluation(self, model: Trained, adapted_by: str = "") -> Target:
        """Evaluation of a trained model, as it is or adapted to each prompt by an arm of test-time training."""
        made_from: list[Any] = [model.model_hash, self.scored_on(), code_hash(*EVALUATION_CODE)]
        if not adapted_by:
            stage = _stage("evaluation", f"{model.stage.phase} {model.stage.arm}", hash_of(made_from))
            return Target(stage, model)
        settings = self.settings.training.test_time
        if settings is None:
            raise SettingError("training.test_time is null: give its settings to adapt to prompts")
        values = settings.model_dump(mode="json", exclude={"arms"})
        made_from += [adapted_by, values, self.settings.seed, code_hash(*TRAINING_CODE)]
        return Target(_stage("test_time", adapted_by, hash_of(made_from)), model, adapted_by)

    def scored_on(self) -> str:
        """Hash of the documents, prompts and tokenizer that models are evaluated on."""
        folder = self.data.folder
        held_out = [path for path in sorted(folder.rglob("*.parquet")) if not path.stem.endswith("train")]
        return hash_of(
            {path.relative_to(folder).as_posix(): hash_of_files(path) for path in (self.data.tokenizer, *held_out)}
        )

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
            write_text(path, text)
        return path


def trained(stage: Stage, stages: Stages) -> Trained | None:
    """The record of a finished training stage, or None."""
    record = run_folder.finished(Path(stage.folder))
    if record is None:
        return None
    model = str(Path(stage.folder) / run_folder.MODEL)
    numbers: dict[str, Any] = {name: record[name] for name in ("steps", "tokens", "seconds", "metrics")}
    return Trained(stage, model, stages.model_hash(model), **numbers)


def _key(identity: dict[str, Any]) -> str:
    return hash_of([run_folder.decisive(identity), code_hash(*TRAINING_CODE)])


def _stage(phase: str, arm: str, key: str) -> Stage:
    name = "-".join(part.replace(" ", "-") for part in (phase, arm, key) if part)
    return Stage(phase, arm, key, str(paths.runs() / name))
