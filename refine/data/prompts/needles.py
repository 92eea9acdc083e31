"""RULER's needle-in-a-haystack prompts (arXiv 2404.06654; scripts/data/synthetic/niah.py), for any tokenizer and essay.

Form and wording are RULER's. Differences from RULER, with the reason:
- the haystack is filled to within one sentence, line or word of the length (RULER: in steps of 500 words or 25 lines),
  so that short lengths exist; like RULER's, a prompt never exceeds the length;
- a sample's draws depend only on seed, task, length and its number, so that 50 samples are the first 50 of 500;
- a distractor line never has a key that is asked for (RULER leaves that to chance);
- a regular expression ends sentences (RULER: nltk's punkt, which has to be downloaded);
- an answer can have fewer than RULER's 128 tokens, for lengths of a few hundred tokens;
- half of all keys and values are kept for exercises (`kept_for_exercises`); a test draws from the other half.
"""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from refine.data.prompts.chat import ChatForm
from refine.data.prompts.fit_to_length import largest_that_fits
from refine.data.prompts.prompt import Prompt, kept_for_exercises, write_prompts
from refine.errors import SettingError, nearest

TEMPLATE = (
    "Some special magic {type} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {type} afterwards.\n{context}\n"
    "What are all the special magic {type} for {query} mentioned in the provided text? "
    "The special magic {type} for {query} mentioned in the provided text are"
)
ANSWER_BEGINS = "The special magic"  # the last of them: RULER's prompts end with the beginning of their answer
NEEDLE = "One of the special magic {type} for {key} is: {value}."
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
ANSWER_TOKENS = 128  # RULER's tokens to generate
DEPTHS = [round(100 * i / 39) for i in range(40)]  # [% of the sentences]


@dataclass(frozen=True)
class NeedleTask:
    """A row of RULER's table of tasks: the kind of haystack, the kinds of keys and values, and their numbers."""

    haystack: str  # noise | essay | needles
    key: str = "words"
    value: str = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1

    @property
    def singular(self) -> bool:
        """Whether the prompt asks for one value; its wording is then in the singular."""
        return self.queries * self.values == 1


TASKS = {
    "niah_single_1": NeedleTask("noise"),
    "niah_single_2": NeedleTask("essay"),
    "niah_single_3": NeedleTask("essay", value="uuids"),
    "niah_multikey_1": NeedleTask("essay", keys=4),
    "niah_multikey_2": NeedleTask("needles"),
    "niah_multikey_3": NeedleTask("needles", key="uuids", value="uuids"),
    "niah_multivalue": NeedleTask("essay", values=4),
    "niah_multiquery": NeedleTask("essay", keys=4, queries=4),
}


def write_needles(
    tasks: Sequence[str],
    lengths: Sequence[int],
    samples: int,
    tokenizer: Any,
    essay: str | Iterable[str],
    seed: int,
    folder: str | Path,
    answer_tokens: int = ANSWER_TOKENS,
    chat: ChatForm | None = None,
) -> list[Path]:
    """`folder`/<task>_<length>.parquet for each task and length; same input, same bytes.

    tokenizer: a call on a text returns input_ids, special tokens included. essay: prose for the essay haystacks,
    repeated if it is too short. Raises SettingError before it writes anything: an unknown task, or a length too short
    for a task.
    """
    for task in tasks:
        _known(task)
    files = {
        Path(folder) / f"{task}_{length}.parquet": make_needles(
            task, length, samples, tokenizer, essay, seed, answer_tokens, chat
        )
        for task in tasks
        for length in lengths
    }
    return [write_prompts(prompts, path) for path, prompts in files.items()]


def make_needles(
    task: str,
    length: int,
    samples: int,
    tokenizer: Any,
    essay: str | Iterable[str] = "",
    seed: int = 42,
    answer_tokens: int = ANSWER_TOKENS,
    chat: ChatForm | None = None,
) -> list[Prompt]:
    """`samples` prompts of one RULER task with prompt + `answer_tokens` <= `length` [tokens]; in the form of `chat`.

    Raises SettingError: unknown task, no essay for a task that needs one, a length too short for the task.
    """
    kind = _known(task)
    words = _words(essay)
    if kind.haystack == "essay" and not words:
        raise SettingError(
            f"task {task!r} hides its needles in essays, and there is none: name a text, folder or data set"
        )
    made = []
    for number in range(samples):
        sample = Sample(kind, words, f"{seed}/{task}/{length}/{number}")

        def text(n: int, sample: Sample = sample) -> str:
            return sample.prompt(n) if chat is None else chat(sample.prompt(n), ANSWER_BEGINS)

        def measured(n: int, text: Callable[[int], str] = text) -> int:
            return len(tokenizer(text(n))["input_ids"])

        size, tokens = largest_that_fits(measured, length - answer_tokens, sample.smallest)
        if tokens > length - answer_tokens:
            raise SettingError(
                f"needles: {task} does not fit in {length} tokens: its shortest prompt takes {tokens} and the answer "
                f"{answer_tokens}; use lengths well above {tokens + answer_tokens}, or fewer answer_tokens"
            )
        made.append(Prompt(text(size), tuple(sample.answers), task, length, answer_tokens, tokens, sample.depths(size)))
    return made


@dataclass
class Sample:
    """The draws of one sample. `prompt(n)` is its prompt with a haystack of n words (essay) or lines (noise, needles).

    exercise: draw keys and values from the half that is kept for exercises, not from the half for tests.
    """

    kind: NeedleTask
    essay: Sequence[str]
    seed: str
    exercise: bool = False
    _pairs: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        chance = random.Random(self.seed)
        self.keys: list[str] = []
        while len(self.keys) < self.kind.keys:
            key = self._draw(self.kind.key, chance)
            if key not in self.keys:
                self.keys.append(key)
        self.values = {key: [self._draw(self.kind.value, chance) for _ in range(self.kind.values)] for key in self.keys}
        self.needles = [(key, value) for key in self.keys for value in self.values[key]]
        chance.shuffle(self.needles)
        self.queries = chance.sample(self.keys, self.kind.queries)
        self.answers = [value for key in self.queries for value in self.values[key]]
        self._chance_of_lines = random.Random(f"{self.seed}/lines")

    @property
    def smallest(self) -> int:
        """The smallest haystack [words or lines] that has a place for each needle."""
        return 1 if self.kind.haystack == "essay" else len(self.needles)

    @cached_property
    def _depth_points(self) -> list[int]:
        return sorted(random.Random(f"{self.seed}/depths").sample(DEPTHS, len(self.needles)))

    def prompt(self, n: int) -> str:
        """The prompt with a haystack of n words or lines."""
        template, kind = TEMPLATE, self.kind.value
        if self.kind.singular:
            template = template.replace("Some", "A").replace("are all", "is").replace("are", "is")
            kind = kind.removesuffix("s")
        *first, last = self.queries
        query = f"{', '.join(first)}, and {last}" if first else last
        context = self._in_essay(n) if self.kind.haystack == "essay" else self._in_lines(n)
        return template.format(type=kind, context=context, query=query)

    def depths(self, n: int) -> tuple[float, ...]:
        """The place of each answer's needle in a haystack of n [% of its sentences or lines]."""
        if self.kind.haystack == "essay":
            points = [float(point) for point in self._depth_points]
        else:
            points = [100 * place / n for place in self._places(n)]
        depth = dict(zip(self.needles, points, strict=True))
        return tuple(depth[key, value] for key in self.queries for value in self.values[key])

    def hidden(self, n: int) -> list[tuple[str, str]]:
        """(key, value) of every needle in a haystack of n, distractors included."""
        lines = self._distractors(n) if self.kind.haystack == "needles" else []
        return [*self.needles, *self._pairs[: len(lines)]]

    def _needle(self, key: str, value: str) -> str:
        return NEEDLE.format(type=self.kind.value, key=key, value=value)

    def _in_essay(self, n: int) -> str:
        sentences = _sentences(tuple(self.essay[i % len(self.essay)] for i in range(n)))
        bounds = [0, *(len(sentences) * point // 100 for point in self._depth_points), len(sentences)]
        parts = []
        for i, (start, end) in enumerate(pairwise(bounds)):
            parts.append(" ".join(sentences[start:end]))
            if i < len(self.needles):
                parts.append(self._needle(*self.needles[i]))
        return " ".join(parts)

    def _in_lines(self, n: int) -> str:
        lines = [NOISE] * n if self.kind.haystack == "noise" else self._distractors(n)
        for place, needle in sorted(zip(self._places(n), self.needles, strict=True), reverse=True):
            lines.insert(place, self._needle(*needle))
        return "\n".join(lines)

    def _places(self, n: int) -> list[int]:
        """Line numbers to put the needles before: drawn without replacement, ascending."""
        return sorted(random.Random(f"{self.seed}/places").sample(range(n), len(self.needles)))

    def _draw(self, kind: str, chance: random.Random) -> str:
        while kept_for_exercises(drawn := _draw(kind, chance)) is not self.exercise:
            continue
        return drawn

    def _distractors(self, n: int) -> list[str]:
        while len(self._pairs) < n:
            key = self._draw(self.kind.key, self._chance_of_lines)
            value = self._draw(self.kind.value, self._chance_of_lines)
            if key not in self.values:
                self._pairs.append((key, value))
        return [self._needle(key, value) for key, value in self._pairs[:n]]


def _draw(kind: str, chance: random.Random) -> str:
    if kind == "numbers":
        return str(chance.randint(10**6, 10**7 - 1))
    if kind == "uuids":
        return str(uuid.UUID(int=chance.getrandbits(128), version=4))
    adjectives, nouns = _vocabulary()
    return f"{chance.choice(adjectives)}-{chance.choice(nouns)}"


@cache
def _vocabulary() -> tuple[list[str], list[str]]:
    """Adjectives and nouns of the package wonderwords. RULER's keys are pairs of them."""
    from wonderwords import RandomWord

    words = RandomWord()
    adjectives, nouns = words.filter(include_categories=["adjective"]), words.filter(include_categories=["noun"])
    return sorted(set(adjectives)), sorted(set(nouns))


def _words(essay: str | Iterable[str]) -> list[str]:
    return (essay if isinstance(essay, str) else " ".join(essay)).split()


@cache
def _sentence_end() -> re.Pattern[str]:
    return re.compile(r"(?<=[.!?])([\"'”’)\]*_]*)\s+(?=[\"'“‘(\[*_]*[A-Z0-9])")


def _sentences(words: Sequence[str]) -> list[str]:
    """The sentences of a text. One ends at . ! or ? before a capital or a number."""
    return [sentence for sentence in _sentence_end().sub(r"\1\n", " ".join(words)).split("\n") if sentence]


def _known(task: str) -> NeedleTask:
    if task not in TASKS:
        raise SettingError(f"no needle task {task!r}{nearest(task, TASKS)}; there are {', '.join(TASKS)}")
    return TASKS[task]
