"""Post-training on prompts with answers (docs/method.md, Phases). Its arms share samples and steps on answers: `sft`
trains by the cross-entropy of the answers alone; before each of these steps `nested_sft` takes next-token steps on the
batch's prompts, `nested_refine` takes REFINE steps, and `nested_focus` steps that weigh the tokens after the positions
more."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refine.errors import DataError, SettingError
from refine.identity import hash_of_files
from refine.phases.mid import reward_code, starting_model
from refine.phases.plan import Plan
from refine.phases.prepared_data import Prepared, check_model, model_identity
from refine.settings import Settings
from refine.settings.arms import NOT_OF_AN_ARM
from refine.settings.training import PostSettings

if TYPE_CHECKING:
    from refine.phases.run import TrainingData
    from refine.training.arguments import RefineArguments

Rows = list[dict[str, Any]]  # prompts with answers


def plan(
    settings: Settings,
    arm: str,
    model: str,
    data: Prepared,
    prompts: Sequence[Path],
    held_out: Sequence[Path] = (),
    revision: str | None = None,
) -> Plan:
    """Post-training of `model` (a folder or hub name) in one arm on all `prompts`.

    `prompts`, `held_out`: parquet files of prompts (`refine.data.prompts.prompt`). The run validates on all `held_out`
    prompts; without any it does not validate.
    Raises SettingError: training.post is null, or has no such arm. DataError: no prompts, a broken file of prompts, no
    tokenizer. ModelError: the folder `model` holds no model, or one of another vocabulary.
    """
    post = _settings(settings)
    post.check_arm(arm)
    if not prompts:
        raise DataError(
            f"no prompts to train on: make {data.folder / 'questions'} with `dvc repro questions`, or name files"
        )
    rows, held_out_rows = _rows(prompts), _rows(held_out)
    data.check()
    check_model(model, data)
    identity = _identity(settings, arm, model, revision, data, prompts, held_out)
    prepare = partial(_prepare, settings, arm, model, revision, data, rows, held_out_rows)
    return Plan(f"post {arm}", identity, prepare, post.early_stop_after if held_out_rows else None)


def _settings(settings: Settings) -> PostSettings:
    if settings.training.post is None:
        raise SettingError(
            "training.post is null: post-training needs its settings (the sample's params.yaml has them)"
        )
    return settings.training.post


def _identity(
    settings: Settings,
    arm: str,
    model: str,
    revision: str | None,
    data: Prepared,
    prompts: Sequence[Path],
    held_out: Sequence[Path],
) -> dict[str, Any]:
    post = _settings(settings)
    values = post.model_dump(mode="json", exclude=NOT_OF_AN_ARM)
    tokenizer = hash_of_files(data.tokenizer / "tokenizer.json")
    hashes = {"tokenizer_hash": tokenizer, "train_hash": hash_of_files(*prompts)}
    if held_out:
        hashes["validation_hash"] = hash_of_files(*held_out)
    return {
        "phase": "post",
        "arm": arm,
        "seed": settings.seed,
        "settings": {**values, "objective": post.objective_of(arm).model_dump(mode="json")}
        | reward_code(post.objective_of(arm)),
        "start": model_identity(model, revision),
        "data": hashes,
    }


def _prepare(
    settings: Settings,
    arm: str,
    model: str,
    revision: str | None,
    data: Prepared,
    train: Rows,
    validation: Rows,
    output: Path,
) -> tuple[RefineArguments, TrainingData]:
    from refine.data.tokenizer import load_tokenizer
    from refine.phases.run import TrainingData
    from refine.training.arguments import arguments_of

    post = _settings(settings)
    more: dict[str, Any] = {"max_length": post.length, "prompt_steps": 0 if arm == "sft" else post.prompt_steps}
    if not validation:
        more |= {"eval_strategy": "no", "eval_on_start": False, "load_best_model_at_end": False}
    else:
        more["metric_for_best_model"] = "answer_loss"
    arguments = arguments_of(
        post, post.objective_of(arm), str(output), settings.seed, settings.training.sharding, **more
    )
    return arguments, TrainingData(
        model=partial(starting_model, model, revision, data),
        train=train,
        validation=validation or None,
        tokenizer=load_tokenizer(data.tokenizer),
    )


def _rows(files: Sequence[Path]) -> Rows:
    """The prompts of all files, in their order."""
    from refine.data.prompts.prompt import load_prompts

    found = [prompt for file in files for prompt in load_prompts(file)]
    return [{"prompt": one.prompt, "answers": list(one.answers), "task": one.task} for one in found]
