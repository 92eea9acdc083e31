"""Post-training on prompts with answers (METHOD, phases), in three arms with the same samples and the same steps on
answers: `sft`, cross-entropy of the answers given their prompts; `nested_sft`, next-token steps on the prompts of each
batch before it; `nested_refine`, REFINE steps on the prompts before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refine.errors import DataError, SettingError
from refine.identity import hash_of_files
from refine.phases import run_folder as folder
from refine.phases.mid import starting_model
from refine.phases.prepared_data import Prepared, check_model, model_identity
from refine.settings import Settings
from refine.settings.objective import ObjectiveSettings
from refine.settings.training import PostSettings

if TYPE_CHECKING:
    from transformers import TrainerCallback

ARMS = ("sft", "nested_sft", "nested_refine")


def settings_of(settings: Settings) -> PostSettings:
    """The section training.post. Raises SettingError where there is none."""
    if settings.training.post is None:
        raise SettingError(
            "training.post is null: give its settings to post-train (params.yaml of the sample has them)"
        )
    return settings.training.post


def objective_of(arm: str, settings: ObjectiveSettings) -> ObjectiveSettings:
    """The objective of the steps on prompts."""
    return settings if arm == "nested_refine" else settings.model_copy(update={"nsp_weight": 0.0})


def identity(
    settings: Settings,
    arm: str,
    model: str,
    revision: str | None,
    data: Prepared,
    prompts: Sequence[Path],
    held_out: Sequence[Path],
) -> dict[str, Any]:
    """What the arm's model is made from (JSON values)."""
    post = settings_of(settings)
    values = post.model_dump(mode="json", exclude={"arms", "objective"})
    tokenizer = hash_of_files(data.tokenizer / "tokenizer.json")
    hashes = {"tokenizer_hash": tokenizer, "train_hash": hash_of_files(*prompts)}
    if held_out:
        hashes["validation_hash"] = hash_of_files(*held_out)
    return {
        "phase": "post",
        "arm": arm,
        "seed": settings.seed,
        "settings": {**values, "objective": objective_of(arm, post.objective).model_dump(mode="json")},
        "start": model_identity(model, revision),
        "data": hashes,
    }


def post_training(
    settings: Settings,
    arm: str,
    model: str,
    data: Prepared,
    prompts: Sequence[Path],
    output: Path,
    held_out: Sequence[Path] = (),
    revision: str | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    once_checked: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Train `model` (a folder or hub name) in one arm on `prompts` into `output` (see `refine.phases.run.run`).

    `prompts`, `held_out`: parquet files of prompts (`refine.data.prompts.prompt`), all together; `held_out` ones
    are validated on; without any nothing is validated.
    `once_checked` is called when settings, data, model and output fit, before anything heavy is imported.
    Raises ModelError: no such model, of another architecture, or of another vocabulary than the data.
    """
    post = settings_of(settings)
    if not prompts:
        raise DataError(
            f"no prompts to train on: make {data.folder / 'questions'} with `dvc repro questions`, or name files"
        )
    train, validation = _rows(prompts), _rows(held_out)
    data.check()
    check_model(model, data)
    record = identity(settings, arm, model, revision, data, prompts, held_out)
    folder.check(output, record)
    if once_checked is not None:
        once_checked()
    from transformers import AutoTokenizer

    from refine.phases.run import Inputs, run
    from refine.training.arguments import arguments_of

    more: dict[str, Any] = {"max_length": post.length, "prompt_steps": 0 if arm == "sft" else post.prompt_steps}
    if not validation:
        more |= {"eval_strategy": "no", "eval_on_start": False, "load_best_model_at_end": False}
    else:
        more["metric_for_best_model"] = "answer_loss"
    arguments = arguments_of(
        post, objective_of(arm, post.objective), str(output), settings.seed, settings.training.sharding, **more
    )
    inputs = Inputs(
        model=lambda: starting_model(model, revision, data),
        train=train,
        validation=validation or None,
        tokenizer=AutoTokenizer.from_pretrained(data.tokenizer),
    )
    return run(
        f"post {arm}", inputs, arguments, record, output, callbacks, post.early_stop_after if validation else None
    )


def _rows(files: Sequence[Path]) -> list[dict[str, Any]]:
    """The prompts of all files, in their order."""
    from refine.data.prompts.prompt import load_prompts

    found = [prompt for file in files for prompt in load_prompts(file)]
    return [{"prompt": one.prompt, "answers": list(one.answers), "task": one.task} for one in found]
