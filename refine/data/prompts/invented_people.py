"""Questions about invented people and places, hidden among real passages: multi-document QA for any machine.

Each person has a passage of templated facts. Its names (of the person, a town, a ship) belong to no other person of the
same seed, in any split: only reading answers a test question, training does not. Half of the names are kept for
exercises (`kept_for_exercises`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from refine.data.prompts.multi_document_qa import Question, QuestionPool
from refine.data.prompts.prompt import kept_for_exercises
from refine.errors import DataError

GROUP = 4  # people in a group; their passages are each other's first distractors
PASSAGE_WORDS = 60  # in a real passage, at least
OPENINGS = (*"BCDFGHJKLMNPRSTVW", "Br", "Dr", "Gr", "St", "Th")
MIDDLES = ("a", "e", "i", "o", "u", "ae", "ei", "ou", "al", "en", "or", "ur")
LINKS = ("", *(consonant + vowel for consonant in "dlmnrv" for vowel in "aeio"))
CLOSINGS = (
    "dane",
    "fell",
    "gard",
    "hithe",
    "kin",
    "lock",
    "mere",
    "nock",
    "rick",
    "stow",
    "thorn",
    "vane",
    "wick",
    "zell",
)
FIRST_NAMES = ("Agna", "Bero", "Corin", "Della", "Edric", "Fenna", "Goran", "Hilde", "Ivo", "Jorun", "Kester", "Lisbet")
TRADES = ("a clockmaker", "a glassblower", "a lighthouse keeper", "a mapmaker", "an organ builder", "a ropemaker")
FACTS = (
    ("was born in the town of {}", "In which town was {} born?"),
    ("learned the trade from {}", "From whom did {} learn the trade?"),
    ("kept a workshop in {}", "Where did {} keep a workshop?"),
    ("sailed on the ship {}", "On which ship did {} sail?"),
)

NAMES_EACH = len(FACTS) + 1  # the person's own name, and one for each fact


def invented_facts(texts: Iterable[str], questions: int, seed: int, first: int = 0) -> QuestionPool:
    """`questions` people, one question each, over their passages and passages cut from the real `texts`.

    first: number of the first person. Splits of the same seed with other numbers share no person and, if their texts
    differ, no passage. Raises DataError if there are fewer names than that.
    """
    if first + questions > people(seed):
        raise DataError(f"invented facts: there are names for {people(seed)} people, not for {first + questions}")
    passages, asked = [], []
    for number in range(questions):
        one = person(first + number, seed)
        query, answer = random.Random(f"{seed}/person/{first + number}/asked").choice(one.asked)
        group = range(number - number % GROUP, min(number - number % GROUP + GROUP, questions))
        passages.append(one.passage)
        asked.append(Question(query, (answer,), (number,), tuple(other for other in group if other != number)))
    passages.extend(cut_passages(texts))
    return QuestionPool(tuple(passages), tuple(asked))


def cut_passages(texts: Iterable[str], words: int = PASSAGE_WORDS) -> list[str]:
    """`texts` cut into passages of about `words` words. Each ends with a sentence; none comes twice."""
    found: dict[str, None] = {}
    for text in texts:
        passage: list[str] = []
        for sentence in re.split(r"(?<=[.!?])\s+", " ".join(text.split())):
            passage.extend(sentence.split())
            if len(passage) >= words:
                found[" ".join(passage)] = None
                passage = []
    return list(found)


@dataclass(frozen=True)
class Person:
    """passage: the name, the trade and every fact. asked: (question, answer) of each fact, in the order of FACTS."""

    passage: str
    asked: tuple[tuple[str, str], ...]


def person(number: int, seed: int, exercise: bool = False) -> Person:
    """Person `number` of `seed`, with names from the half for exercises or from the half for tests."""
    chance = random.Random(f"{seed}/person/{number}")
    mine = _names(seed, exercise)[number * NAMES_EACH : (number + 1) * NAMES_EACH]
    name, values = f"{chance.choice(FIRST_NAMES)} {mine[0]}", mine[1:]
    order = chance.sample(range(len(FACTS)), len(FACTS))
    first, *rest = (FACTS[i][0].format(values[i]) for i in order)
    passage = f"{name} was {chance.choice(TRADES)} who {first}. " + " ".join(f"{name} {fact}." for fact in rest)
    return Person(passage, tuple((FACTS[i][1].format(name), values[i]) for i in range(len(FACTS))))


def people(seed: int, exercise: bool = False) -> int:
    """The number of people that there are names for."""
    return len(_names(seed, exercise)) // NAMES_EACH


@cache
def _names(seed: int, exercise: bool) -> list[str]:
    """The invented names for tests, or those for exercises, in an order that `seed` decides."""
    names = sorted({o + m + l + c for o in OPENINGS for m in MIDDLES for l in LINKS for c in CLOSINGS})
    names = [name for name in names if kept_for_exercises(name) is exercise]
    random.Random(f"{seed}/names").shuffle(names)
    return names
