"""The settings of an experiment (all of params.yaml) and of a pretraining, and what the two have in common."""

from __future__ import annotations

from pydantic import Field, model_validator

from refine.settings.base import LARGEST_SEED, Section
from refine.settings.data import DataSettings, DocumentsSettings, Source, TokenizerSettings
from refine.settings.evaluation import EvaluationSettings, RegistrySettings
from refine.settings.model import ModelSettings
from refine.settings.prompts import NeedlesSettings, QuestionsSettings
from refine.settings.training import CommonTraining, StartSettings, TrainingSettings


class CommonSettings(Section):
    """Shared by experiments and pretraining: data, model and training."""

    seed: int = Field(ge=0, le=LARGEST_SEED, description="seed of the experiment; every random draw derives from it")
    data: DataSettings
    tokenizer: TokenizerSettings
    documents: DocumentsSettings
    model: ModelSettings
    training: CommonTraining


class Settings(CommonSettings):
    """Everything in params.yaml."""

    needles: NeedlesSettings
    questions: QuestionsSettings
    training: TrainingSettings
    evaluation: EvaluationSettings
    registry: RegistrySettings

    @model_validator(mode="after")
    def _room_for_rollouts(self) -> Settings:
        training, prepared = self.training, self.documents.sequence_length
        lengths = {
            "mid": min(training.mid.length or prepared, prepared),
            "post": training.post and training.post.length,
        }
        for phase, length in lengths.items():
            if length is None:
                continue
            one = getattr(training, phase).objective
            if one.nsp_weight > 0 and one.min_prefix + one.rollout_length > length:
                raise ValueError(
                    f"training.{phase}.objective: min_prefix {one.min_prefix} and rollout_length {one.rollout_length} "
                    f"leave no place for a rollout in {length} tokens: lower them, or set nsp_weight 0"
                )
        return self


class Drill(Section):
    """The first part of a pretraining: text in which nearly every token is recall, until the model recalls."""

    train: tuple[Source, ...] = Field(min_length=1, description="training text of the drill")
    start: StartSettings = Field(description="training of the drill, with the keys of training.start")


class PretrainingSettings(CommonSettings):
    """A pretraining (`refine pretrain`)."""

    drill: Drill | None = Field(None, description="a first training on text that is nearly all recall; null skips it")
