"""What `refine demo` computes: needles that a model misses beyond the length it was trained at, and finds after seconds
of mid-training.

The prompts hide a needle in plays that no shipped model was trained on. The training rows are recall exercises around
the other plays, of the prompts' length and a third more, with keys and values from the half that is kept for exercises.
Each state but the first is a copy of the model that was trained on the same rows in the same order.
"""

from __future__ import annotations

import copy
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from refine.system.leftovers import temporary_folder

if TYPE_CHECKING:
    from refine.data.prompts.prompt import Prompt
    from refine.data.prompts.recall_exercises import Exercise
    from refine.data.token_sequences import Sequence as TokenSequence
    from refine.evaluation.record import Answer
    from refine.models import FastWeightLanguageModel
    from refine.settings.objective import ObjectiveSettings

HELD_OUT = ("coriolanus", "king-john", "the-tempest", "twelfth-night")  # no shipped model is trained on them
TASK = "niah_single_2"  # of the prompts
EXERCISES = (TASK,)  # so that what is trained is what is asked, with other keys, values and plays
PROMPTS, ANSWER_TOKENS = 10, 12
ROLLOUT_LENGTH = 7  # tokens: the digits of a value
LEARNING_RATE, BETAS, FOCUS_WEIGHT = 5e-4, (0.9, 0.95), 1.0
AS_IT_IS, NEXT_TOKEN, REFINE = "as it is", "next-token loss", "REFINE and focus"
Report = Callable[[str], None]


@dataclass(frozen=True)
class State:
    """A state of the model and its answers to the prompts, in their order. seconds: of its training."""

    name: str
    seconds: float
    answers: tuple[Answer, ...]
    right: tuple[bool, ...]

    @property
    def log_prob(self) -> float:
        """Mean over the prompts of the log-probability of the answer's tokens [nats per token]."""
        return sum(one.log_prob for one in self.answers) / len(self.answers)


@dataclass(frozen=True)
class Rollout:
    """After the first `position` tokens the model sampled `written`, where the text has `text`."""

    position: int
    written: str
    text: str
    reward: float  # mean over the position's rollouts, 0 to 1


@dataclass(frozen=True)
class ExerciseRead:
    """The first exercise as the untrained model reads it. entropy: after each token [nats]. told: first and last token
    of each needle's first telling. by_entropy, at_marks: where either selection starts rollouts."""

    tokens: tuple[str, ...]
    entropy: tuple[float, ...]
    told: tuple[tuple[int, int], ...]
    by_entropy: tuple[Rollout, ...]
    at_marks: tuple[Rollout, ...]


@dataclass(frozen=True)
class Demonstration:
    """shown: the number of the prompt to show (`to_show`). steps: of each training."""

    prompts: tuple[Prompt, ...]
    shown: int
    steps: int
    states: tuple[State, ...]
    exercise: ExerciseRead

    @property
    def needle(self) -> str:
        """The sentence hidden in the prompt to show."""
        prompt = self.prompts[self.shown]
        return re.findall(r"One of the special magic [^.]*?: " + re.escape(prompt.answers[0]), prompt.prompt)[0]


def demonstrate(
    model: FastWeightLanguageModel,
    tokenizer: Any,
    length: int,
    seed: int,
    steps: int,
    progress: Report = lambda line: None,
) -> Demonstration:
    """Let `model` find needles in PROMPTS prompts of `length` tokens: as it is, and after `steps` steps of one exercise
    each, by next-token loss, and by that with REFINE and focus at the marks. `progress`: called at each step.

    Leaves `model` unchanged. Raises SettingError: no needle fits `length`; DataError: the plays are not installed.
    """
    from refine.data.corpus import packages

    plays = {work.work: work.text for work in packages.works("plays")}
    progress("making prompts and exercises")
    prompts = _prompts([plays[name] for name in HELD_OUT], tokenizer, length, seed)
    exercises, rows = _exercises(
        [plays[name] for name in plays if name not in HELD_OUT], tokenizer, length, steps, seed
    )
    progress(f"{AS_IT_IS}: answering {len(prompts)} prompts")
    read = _read(model, tokenizer, exercises[0], rows[0], seed)
    states = [_state(AS_IT_IS, 0.0, model, tokenizer, prompts)]
    for name, objective in ((NEXT_TOKEN, _next_token()), (REFINE, _at_marks())):
        trained, seconds = _trained(model, tokenizer, rows, objective, seed, name, progress)
        progress(f"{name}: answering {len(prompts)} prompts")
        states.append(_state(name, seconds, trained, tokenizer, prompts))
    return Demonstration(tuple(prompts), to_show(states), steps, tuple(states), read)


def to_show(states: Sequence[State]) -> int:
    """The first prompt that the first state misses and the last finds; the very first prompt if there is none."""
    judged = zip(states[0].right, states[-1].right, strict=True)
    return next((n for n, (before, after) in enumerate(judged) if after and not before), 0)


def _next_token() -> ObjectiveSettings:
    from refine.settings.objective import ObjectiveSettings

    return ObjectiveSettings(nsp_weight=0)


def _at_marks() -> ObjectiveSettings:
    """Rollouts from the marks, and the true tokens there weighted: the next-token loss of `_next_token` stays in it."""
    from refine.settings.objective import ObjectiveSettings

    return ObjectiveSettings(
        selection="marked",
        rollouts=16,
        rollout_length=ROLLOUT_LENGTH,
        group="position",
        reward="binary",
        focus_weight=FOCUS_WEIGHT,
    )


def _by_entropy() -> ObjectiveSettings:
    """The published selection, with the rollouts and the reward of `_at_marks`, so that both are comparable."""
    return _at_marks().model_copy(update={"selection": "entropy"})


def _prompts(plays: Sequence[str], tokenizer: Any, length: int, seed: int) -> list[Prompt]:
    """PROMPTS prompts, each in another passage of the held-out plays."""
    from refine.data.prompts.needles import make_needles
    from refine.training.order import derived_seed

    words = " ".join(plays).split()
    made: list[Prompt] = []
    for number in range(PROMPTS):
        own = derived_seed("demo", seed, number)
        first = own % max(len(words) - length, 1)
        passage = " ".join(words[first : first + length])  # a word has a token at least
        made += make_needles(TASK, length, 1, tokenizer, passage, own, ANSWER_TOKENS)
    return made


def _exercises(
    plays: Sequence[str], tokenizer: Any, length: int, count: int, seed: int
) -> tuple[list[Exercise], list[TokenSequence]]:
    """`count` exercises of `length` tokens to a third more, and the same as tokens with marks."""
    from refine.data.prompts.recall_exercises import exercises
    from refine.data.raw_documents import Document
    from refine.data.token_sequences import cut_into_sequences

    passage = random.Random(seed).choice(plays)[:20_000]
    per_token = len(passage) / len(tokenizer(passage)["input_ids"])
    characters = round(per_token * length), round(per_token * length * 4 / 3)
    made = list(exercises(plays, count, seed, 0.0, 0.0, EXERCISES, characters))
    documents = (Document(one.id, one.text, one.marks) for one in made)
    longest = max(len(one.text) for one in made) + 2  # so that no exercise is cut: a token has a character at least
    return made, list(cut_into_sequences(documents, tokenizer, longest, short=True))


def _state(name: str, seconds: float, model: FastWeightLanguageModel, tokenizer: Any, prompts: list[Prompt]) -> State:
    from refine.data.prompts.tasks import known_task
    from refine.evaluation.answers import answer
    from refine.evaluation.scorers import scorer_of

    answers, scorer = answer(model, tokenizer, prompts), scorer_of(known_task(TASK))
    right = [scorer(one.text, prompt.answers) == 1.0 for one, prompt in zip(answers, prompts, strict=True)]
    return State(name, seconds, tuple(answers), tuple(right))


def _read(
    model: FastWeightLanguageModel, tokenizer: Any, exercise: Exercise, row: TokenSequence, seed: int
) -> ExerciseRead:
    """The exercise's entropy, and rollouts where the published selection starts them and at its marks."""
    import torch

    from refine.objective import next_sequence_step

    tokens, seeds = torch.tensor([row.tokens], device=model.device), torch.tensor([seed], device=model.device)
    with torch.no_grad():
        by_entropy = next_sequence_step(model, tokens, _by_entropy(), seeds)
        at_marks = next_sequence_step(model, tokens, _at_marks(), seeds, marks=[row.marks])
    return ExerciseRead(
        tuple(tokenizer.decode(token) for token in row.tokens),
        tuple(by_entropy.entropy[0].tolist()),
        _told(exercise, tokenizer),
        _rollouts(by_entropy, row, tokenizer),
        _rollouts(at_marks, row, tokenizer),
    )


def _told(exercise: Exercise, tokenizer: Any) -> tuple[tuple[int, int], ...]:
    """The first and last token of each value, where the text tells it first."""
    encoded = tokenizer(exercise.text)  # as the exercise's tokens: bos, then the text
    values = {match[0] for mark in exercise.marks if (match := re.match(r"\d+", exercise.text[mark:]))}
    places = sorted((exercise.text.index(value), len(value)) for value in values)
    return tuple((encoded.char_to_token(first), encoded.char_to_token(first + size - 1)) for first, size in places)


def _rollouts(step: Any, row: TokenSequence, tokenizer: Any) -> tuple[Rollout, ...]:
    """The best rollout of each position. step: a StepResult of one row with the reward `binary`."""
    rewards = step.rewards["binary"][0]  # [positions, rollouts]
    found = []
    for column in step.valid[0].nonzero().flatten().tolist():
        position, best = int(step.positions[0, column]), int(rewards[column].argmax())
        written = step.rollouts[0, column, best].tolist()
        text = row.tokens[position : position + len(written)]
        found.append(
            Rollout(position, tokenizer.decode(written), tokenizer.decode(text), float(rewards[column].mean()))
        )
    return tuple(found)


def _trained(
    model: FastWeightLanguageModel,
    tokenizer: Any,
    rows: list[TokenSequence],
    objective: ObjectiveSettings,
    seed: int,
    name: str,
    progress: Report,
) -> tuple[FastWeightLanguageModel, float]:
    """A copy of `model` after a step on each of `rows`, and the seconds that took."""
    from refine.training.arguments import RefineArguments
    from refine.training.trainer import RefineTrainer

    trained, started = copy.deepcopy(model), time.perf_counter()
    with temporary_folder("demo") as folder:
        arguments = RefineArguments(
            output_dir=str(folder),
            objective=objective,
            max_steps=len(rows),
            sequences_per_step=1,
            per_device_train_batch_size=1,
            learning_rate=LEARNING_RATE,
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            save_strategy="no",
            disable_tqdm=True,
            seed=seed,
        )
        data = [{"tokens": row.tokens, "marks": row.marks} for row in rows]
        trainer = RefineTrainer(trained, arguments, train_dataset=data, processing_class=tokenizer)
        trainer.add_callback(_progress_callback(name, progress))
        trainer.train()
    return trained.eval(), time.perf_counter() - started


def _progress_callback(name: str, progress: Report) -> Any:
    """Reports each step: its number, its loss and the time left."""
    from transformers import TrainerCallback

    class Reporting(TrainerCallback):
        started = time.monotonic()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
            done, all_steps = state.global_step, state.max_steps
            loss = (logs or {}).get("train/ntp_loss")
            if loss is not None:
                left = (time.monotonic() - self.started) / done * (all_steps - done)
                progress(f"{name}: step {done} of {all_steps}, loss {loss:.2f} nats, {left:.0f} s left")

    return Reporting()
