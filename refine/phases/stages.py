"""The records that the flow's tasks pass on: paths, hashes and MLflow ids, which JSON can hold; never a tensor.

`Stages` names the folder of each stage by the hash of what decides its result: settings, inputs and code. Every flow
that needs a stage finds its folder, and does not repeat a finished one.
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
from refine.phases.plan import Plan
from refine.phases.prepared_data import Prepared, model_identity
from refine.settings import Settings
from refine.system.files import write_text

# The code that decides a result: every room or file that a stage imports (tests/phases/test_stages.py compares these
# lists with the imports). Settings enter a key by their values. Paths, errors and refine/system/ decide no result.
READING_CODE = (
    "data/hub", "data/parquet_files", "data/prompts", "data/raw_documents", "data/token_sequences", "data/tokenizer",
    "models", "ops",
)  # fmt: skip
TRAINING_CODE = (*READING_CODE, "metric_names", "objective", "phases", "training")
EVALUATION_CODE = (*READING_CODE, "evaluation", "metric_names", "phases/evaluation")


@dataclass(frozen=True)
class Stage:
    """A stage of the experiment. key: hash of what decides its result. folder: where the result goes."""

    phase: str
    arm: str
    key: str
    folder: str

    @property
    def title(self) -> str:
        """Phase and arm, as in `mid refine`: the name of its runs in Prefect and MLflow."""
        return f"{self.phase} {self.arm}".strip()


@dataclass(frozen=True)
class Trained:
    """A trained model. model: its folder (or a hub name). metrics: the last value of each metric of its training."""

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
    """A model to evaluate: as it is, or adapted to each prompt by an arm of test-time training (`adapted_by`)."""

    stage: Stage
    model: Trained
    adapted_by: str = ""

    @property
    def phase(self) -> str:
        """The phase of the scores: the one that trained the model last, or test_time."""
        return "test_time" if self.adapted_by else self.model.stage.phase

    @property
    def arm(self) -> str:
        """The arm of the scores."""
        return self.adapted_by or self.model.stage.arm


@dataclass(frozen=True)
class Scored:
    """An evaluated target. scored_on: hash of the documents and prompts; scores compare only if it is equal."""

    target: Target
    scored_on: str
    run_id: str = ""
    reused: bool = False
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Stages:
    """The stages of one experiment with these settings and this prepared data.

    Each method validates what its stage needs; it raises as `plan` of that phase does.
    """

    settings: Settings
    data: Prepared

    def start(self) -> Stage:
        """Next-token training of a new model."""
        return _training_stage("start", "", start.plan(self.settings, self.data))

    def mid(self, arm: str, model: str) -> Stage:
        """Mid-training of the starting model `model` (folder or hub name) in one arm."""
        return _training_stage("mid", arm, mid.plan(self.settings, arm, model, self.data, self.revision(model)))

    def post(self, arm: str, model: str) -> Stage:
        """Post-training of a mid-trained model in one arm, on all prepared training prompts."""
        prompts, held_out = self.data.questions("train"), self.data.questions("validation")
        revision = self.revision(model)
        plan = post.plan(self.settings, arm, model, self.data, prompts, held_out, revision)
        return _training_stage("post", arm, plan)

    def evaluation(self, model: Trained, adapted_by: str = "") -> Target:
        """Evaluation of a trained model, as it is or adapted to each prompt by an arm of test-time training.

        Raises SettingError: training.test_time is null.
        """
        made_from: list[Any] = [model.model_hash, self.scored_on(), code_hash(*EVALUATION_CODE)]
        if not adapted_by:
            stage = _stage("evaluation", f"{model.stage.phase} {model.stage.arm}", hash_of(made_from))
            return Target(stage, model)
        settings = self.settings.training.test_time
        if settings is None:
            raise SettingError("training.test_time is null: test-time training needs its settings")
        values = settings.model_dump(mode="json", exclude={"arms", "variants"})
        values["objective"] = settings.objective_of(adapted_by).model_dump(mode="json")
        made_from += [adapted_by, values, self.settings.seed, code_hash(*TRAINING_CODE)]
        made_from += mid.reward_code(settings.objective).values()
        return Target(_stage("test_time", adapted_by, hash_of(made_from)), model, adapted_by)

    def scored_on(self) -> str:
        """Hash of the documents, prompts and tokenizer of the evaluation."""
        folder = self.data.folder
        held_out = [path for path in paths.visible_files(folder, "*.parquet") if not path.stem.endswith("train")]
        return hash_of(
            {path.relative_to(folder).as_posix(): hash_of_files(path) for path in (self.data.tokenizer, *held_out)}
        )

    def revision(self, model: str) -> str | None:
        """The revision of `model`: model.revision for the checkpoint in the settings, None for any other model."""
        return self.settings.model.revision if model == self.settings.model.checkpoint else None

    def model_hash(self, model: str) -> str:
        """Hash of a checkpoint folder, or of a hub name with its revision."""
        return hash_of(model_identity(model, self.revision(model)))

    def frozen(self) -> Path:
        """The settings as a file for the training processes. A running experiment ignores edits of params.yaml."""
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


def _training_stage(phase: str, arm: str, plan: Plan) -> Stage:
    decisive = run_folder.without_execution_settings(plan.identity)
    return _stage(phase, arm, hash_of([decisive, code_hash(*TRAINING_CODE)]))


def _stage(phase: str, arm: str, key: str) -> Stage:
    name = "-".join(part.replace(" ", "-") for part in (phase, arm, key) if part)
    return Stage(phase, arm, key, str(paths.runs() / name))
