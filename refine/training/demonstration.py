"""What REFINE does, on one prompt: a needle in a held-out scene, answered by a model as it is, after a few REFINE steps
on other scenes, and after test-time training on the prompt itself."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from refine.data.corpus import packages
from refine.data.prompts.needles import make_needles
from refine.data.prompts.prompt import Prompt
from refine.data.prompts.tasks import known_task
from refine.evaluation.answers import answer
from refine.evaluation.record import Answer
from refine.evaluation.scorers import scorer_of
from refine.objective import next_sequence_step
from refine.settings import ObjectiveSettings
from refine.settings.training import TestTimeSettings
from refine.training.arguments import RefineArguments
from refine.training.order import derived_seed
from refine.training.test_time import TestTimeTrainer
from refine.training.trainer import RefineTrainer

if TYPE_CHECKING:
    from refine.models import FastWeightLanguageModel

HELD_OUT = ("coriolanus", "king-john", "the-tempest", "twelfth-night")  # no shipped model has read them
STEPS, SEQUENCES, LEARNING_RATE = 8, 2, 2e-4
OBJECTIVE = ObjectiveSettings(positions=8, rollout_length=5, rollouts=4, group="position", reward="binary")


@dataclass(frozen=True)
class Rollout:
    """One position: `position` tokens were read, then `written` was sampled where the text says `text`."""

    position: int
    written: str
    text: str
    reward: float  # the mean over the position's rollouts, 0 to 1
    log_prob: float  # of `written` [nats per token]


@dataclass(frozen=True)
class Shown:
    """answers: what was done to the model -> its answer and whether that is right. entropy: after each token [nats]."""

    prompt: Prompt
    needle: str
    needle_at: tuple[int, int]  # its first and last token
    answers: dict[str, tuple[Answer, bool]]
    tokens: list[str]
    entropy: list[float]
    rollouts: list[Rollout]


def demonstrate(model: FastWeightLanguageModel, tokenizer: Any, length: int, seed: int) -> Shown:
    """Hide a needle in a held-out scene of `length` tokens and let `model` recall it in three states.

    `model` is left as it was. Raises SettingError: no needle fits `length`; DataError: the plays are not installed.
    """
    plays = {work.work: work.text for work in packages.works("plays")}
    scene = " ".join(_scene(plays[name], seed) for name in HELD_OUT)
    (prompt,) = make_needles("niah_single_2", length, 1, tokenizer, scene, seed, answer_tokens=12)
    shown = _watched(model, tokenizer, prompt, seed)
    refined = _refined(model, tokenizer, [_scene(text, seed) for name, text in plays.items() if name not in HELD_OUT])
    at_test = TestTimeTrainer(
        TestTimeSettings(learning_rate=LEARNING_RATE, steps=2, objective=OBJECTIVE), "refine", seed
    )
    answers = {
        "as it is": answer(model, tokenizer, [prompt])[0],
        f"after {STEPS} REFINE steps": answer(refined, tokenizer, [prompt])[0],
        "after test-time training": answer(model, tokenizer, [prompt], adapter=at_test)[0],
    }
    scorer = scorer_of(known_task(prompt.task))
    judged = {name: (one, scorer(one.text, prompt.answers) == 1.0) for name, one in answers.items()}
    needle = next(line for line in prompt.prompt.split(". ") if prompt.answers[0] in line)
    return Shown(prompt, needle, _tokens_of(needle.strip(), prompt.prompt, tokenizer), judged, *shown)


def _tokens_of(piece: str, text: str, tokenizer: Any) -> tuple[int, int]:
    """The first and last token of `piece` in `text`."""
    encoded, first = tokenizer(text), text.index(piece)
    return encoded.char_to_token(first), encoded.char_to_token(first + len(piece) - 1)


def _scene(text: str, seed: int, words: int = 1200) -> str:
    """Words from somewhere in a play, by the seed."""
    found = text.split()
    first = derived_seed("scene", seed) % max(len(found) - words, 1)
    return " ".join(found[first : first + words])


@torch.no_grad()
def _watched(
    model: FastWeightLanguageModel, tokenizer: Any, prompt: Prompt, seed: int
) -> tuple[list[str], list[float], list[Rollout]]:
    """The prompt's tokens, the entropy after each, and rollouts where REFINE would sample them."""
    ids = tokenizer(prompt.prompt)["input_ids"]
    tokens = torch.tensor([ids], device=model.device)
    step = next_sequence_step(model, tokens, OBJECTIVE, torch.tensor([seed], device=model.device))
    rollouts = []
    for column in step.valid[0].nonzero().flatten().tolist():
        position = int(step.positions[0, column])
        best = int(step.rewards[OBJECTIVE.reward][0, column].argmax())
        rollouts.append(
            Rollout(
                position,
                tokenizer.decode(step.rollouts[0, column, best].tolist()),
                tokenizer.decode(ids[position : position + OBJECTIVE.rollout_length]),
                float(step.rewards[OBJECTIVE.reward][0, column].mean()),
                float(step.log_probs[0, column, best].mean()),
            )
        )
    return tokenizer.convert_ids_to_tokens(ids), step.entropy[0].tolist(), rollouts


def _refined(model: FastWeightLanguageModel, tokenizer: Any, scenes: Sequence[str]) -> FastWeightLanguageModel:
    """A copy of `model` after a few REFINE steps on `scenes`."""
    trained = copy.deepcopy(model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = RefineArguments(
            output_dir=folder, objective=OBJECTIVE, max_steps=STEPS, sequences_per_step=SEQUENCES, max_length=768,
            per_device_train_batch_size=SEQUENCES, learning_rate=LEARNING_RATE, save_strategy="no", seed=1,
        )  # fmt: skip
        rows = [{"text": scene} for scene in scenes]
        RefineTrainer(trained, arguments, train_dataset=rows, processing_class=tokenizer).train()
    return trained.eval()
