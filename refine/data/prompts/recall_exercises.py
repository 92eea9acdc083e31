"""Recall exercises: needle prompts and questions about invented people, with their answers, as text to train on.

They have the form of the test prompts (`needles`, `multi_document_qa`) and share nothing with them: keys, values and
names are from the half that no test draws (`prompt.kept_for_exercises`), and the text around them is training text.
After the answer, an exercise repeats everything that was hidden in it, in another order, so that each value that
follows a key or a name has to be recalled. That, and short texts, let a small model learn it in millions of tokens.
The marks of an exercise are where answers and repeated needles' values begin: the text asks there for what it has told.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from refine.data.prompts.fit_to_length import largest_that_fits
from refine.data.prompts.invented_people import FACTS, cut_passages, people, person
from refine.data.prompts.multi_document_qa import TEMPLATE
from refine.data.prompts.needles import NEEDLE, TASKS, Sample

NEEDLES = ("niah_single_1", "niah_single_2", "niah_multikey_1", "niah_multikey_2", "niah_multivalue", "niah_multiquery")
ASK = "\n\nQuestion: {query}\nAnswer: {answer}"
# (smallest, largest) size. Each doubling is equally likely, so most texts are short.
SIZES = {"essay": (20, 500), "noise": (2, 36), "needles": (2, 16)}  # of haystacks: words for essays, else lines
PEOPLE = (1, 5)
PASSAGES = (1, 6)  # passages beside the people's, plus one
RECITED = {"needles": (1, 4), "people": (1, 2), "text": (6, 40)}  # needles beside the first; people; words
TIMES = 5  # how often a recital repeats its lines


class Exercise(NamedTuple):
    """id, text, and the characters of the text before each mark, ascending."""

    id: str
    text: str
    marks: tuple[int, ...]


def exercises(
    texts: Sequence[str],
    count: int,
    seed: int,
    facts_share: float = 0.35,
    recitals_share: float = 0.3,
    tasks: Sequence[str] = NEEDLES,
    characters: tuple[int, int] | None = None,
) -> Iterator[Exercise]:
    """`count` exercises. Exercise i depends only on i and the arguments other than `count`.

    texts: training text, to fill haystacks and to cut passages from. facts_share: share of exercises that ask about
    people. recitals_share: share of exercises that repeat facts. The rest are needle prompts of `tasks`, as short as
    SIZES says, or of about `characters` characters (smallest, largest).
    """
    words = [text.split() for text in texts]
    passages = cut_passages(texts)
    for number in range(count):
        chance = random.Random(f"{seed}/exercise/{number}")
        drawn = chance.random()
        if drawn < facts_share:
            yield Exercise(f"facts/{number}", *_facts(chance, passages, seed))
        elif drawn < facts_share + recitals_share:
            yield Exercise(f"recital/{number}", *_recital(chance, words, f"{seed}/{number}", seed))
        else:
            task = chance.choice(tuple(tasks))
            yield Exercise(f"{task}/{number}", *_needles(chance, task, words, f"{seed}/{number}", characters))


Marked = tuple[str, tuple[int, ...]]  # a text and its marks


def _needles(
    chance: random.Random,
    task: str,
    texts: Sequence[Sequence[str]],
    seed: str,
    characters: tuple[int, int] | None,
) -> Marked:
    """A needle prompt, its answers, and all its needles again."""
    kind = TASKS[task]
    if characters is None:
        size = _between(chance, *SIZES[kind.haystack])
        sample = Sample(kind, _piece(chance, texts, size), seed, exercise=True)
        size = max(size, sample.smallest)
    else:
        most = _between(chance, *characters)
        sample = Sample(kind, _piece(chance, texts, most), seed, exercise=True)  # a word has a character at least
        size, _ = largest_that_fits(lambda n: len(_with_answers(sample, n)[0]), most, sample.smallest)
    text, marks = _with_answers(sample, size)
    hidden = sample.hidden(size)
    parts = [(text, marks)]
    for key, value in chance.sample(hidden, len(hidden)):
        line = NEEDLE.format(type=kind.value, key=key, value=value)
        parts.append((line, (line.rindex(value),)))
    return _joined(parts)


def _with_answers(sample: Sample, size: int) -> Marked:
    """A needle prompt and its answers, which are marked."""
    text, marks = sample.prompt(size), []
    for number, answer in enumerate(sample.answers):
        text += ", " if number else " "
        marks.append(len(text))
        text += answer
    return f"{text}.", tuple(marks)


def _joined(parts: Iterable[Marked]) -> Marked:
    """The texts as lines, with all their marks."""
    text, marks = "", []
    for part, own in parts:
        text += "\n" if text else ""
        marks += [len(text) + mark for mark in own]
        text += part
    return text, tuple(marks)


def _facts(chance: random.Random, passages: Sequence[str], seed: int) -> Marked:
    """People's passages among others, questions about the people, and their passages again."""
    known = [person(chance.randrange(people(seed, True)), seed, True) for _ in range(_between(chance, *PEOPLE))]
    others = chance.sample(passages, _between(chance, *PASSAGES) - 1)
    shown = [*(one.passage for one in known), *others]
    chance.shuffle(shown)
    context = "\n\n".join(f"Document {i}:\n{passage}" for i, passage in enumerate(shown, 1))
    every = [pair for one in known for pair in one.asked]
    (query, answer), *rest = chance.sample(every, len(FACTS))
    again = "\n\n".join(one.passage for one in chance.sample(known, len(known)))
    text = f"{TEMPLATE.format(context=context, query=query)} "
    marks, text = [len(text)], text + answer
    for query, answer in rest:
        text += ASK.format(query=query, answer="")
        marks.append(len(text))
        text += answer
    return f"{text}\n\n{again}", tuple(marks)


def _recital(chance: random.Random, texts: Sequence[Sequence[str]], name: str, seed: int) -> Marked:
    """A few needles, one or two people, or a piece of text, TIMES over: what a model recalls first. The values of
    needles are marked from the second time on."""
    values: dict[str, str] = {}  # of each line
    kind = chance.choice(("needles", "people", "text"))
    if kind == "needles":
        sample = Sample(TASKS["niah_multikey_2"], (), name, exercise=True)
        pairs = sample.hidden(_between(chance, *RECITED["needles"]))
        values = {NEEDLE.format(type="numbers", key=key, value=value): value for key, value in pairs}
        lines = list(values)
    elif kind == "people":
        count = _between(chance, *RECITED["people"])
        lines = [person(chance.randrange(people(seed, True)), seed, True).passage for _ in range(count)]
    else:
        lines = [" ".join(_piece(chance, texts, _between(chance, *RECITED["text"])))]
    told = [line for _ in range(TIMES) for line in chance.sample(lines, len(lines))]
    return _joined(
        (line, (line.rindex(values[line]),) if n >= len(lines) and line in values else ())
        for n, line in enumerate(told)
    )


def _piece(chance: random.Random, texts: Sequence[Sequence[str]], size: int) -> Sequence[str]:
    """`size` words in a row from a random place of a random text."""
    words = chance.choice(texts)
    first = chance.randrange(max(len(words) - size, 1))
    return words[first : first + size]


def _between(chance: random.Random, low: int, high: int) -> int:
    """A random size from `low` to `high`; each doubling is equally likely."""
    return round(math.exp(chance.uniform(math.log(low), math.log(high))))
