"""Recall exercises: needle prompts and questions about invented people, with their answers, as text to train on.

They have the form of the tests (refine.data.prompts.needles, refine.data.prompts.multi_document_qa) and share nothing
with them: keys, values and names are of the half that no test draws (`refine.data.prompts.prompt.kept_for_exercises`), the text around
them is the training text.
After the answer everything that was hidden is told again, in another order: what follows a key or a name is then
recall at every turn. That, and that most texts are short, lets a small model learn it within millions of tokens.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

from refine.data.prompts.invented_people import FACTS, cut_passages, people, person
from refine.data.prompts.multi_document_qa import TEMPLATE
from refine.data.prompts.needles import NEEDLE, TASKS, Sample

NEEDLES = ("niah_single_1", "niah_single_2", "niah_multikey_1", "niah_multikey_2", "niah_multivalue", "niah_multiquery")
ASK = "\n\nQuestion: {query}\nAnswer: {answer}"
# From the smallest to the largest size, each doubling as likely as the next: most texts are short.
SIZES = {"essay": (20, 500), "noise": (2, 36), "needles": (2, 16)}  # of haystacks: words, or lines
PEOPLE = (1, 5)
PASSAGES = (1, 6)  # one more than there are beside the people's
RECITED = {"needles": (1, 4), "people": (1, 2), "text": (6, 40)}  # needles beside the first, people, words
TIMES = 5  # that a recital tells what it has to tell


def exercises(
    texts: Sequence[str], count: int, seed: int, facts_share: float = 0.35, recitals_share: float = 0.3
) -> Iterator[tuple[str, str]]:
    """`count` pairs (id, text); number i depends on the arguments and i alone.

    texts: the training text, which fills haystacks and gives the other passages. facts_share: share of questions about
    people; recitals_share: of texts that are nearly all recall; the rest are needles.
    """
    words = [text.split() for text in texts]
    passages = cut_passages(texts)
    for number in range(count):
        chance = random.Random(f"{seed}/exercise/{number}")
        drawn = chance.random()
        if drawn < facts_share:
            yield f"facts/{number}", _facts(chance, passages, seed)
        elif drawn < facts_share + recitals_share:
            yield f"recital/{number}", _recital(chance, words, f"{seed}/{number}", seed)
        else:
            task = chance.choice(NEEDLES)
            yield f"{task}/{number}", _needles(chance, task, words, f"{seed}/{number}")


def _needles(chance: random.Random, task: str, texts: Sequence[Sequence[str]], seed: str) -> str:
    """A needle prompt with its answers, and the needles again."""
    kind = TASKS[task]
    size = _between(chance, *SIZES[kind.haystack])
    sample = Sample(kind, _piece(chance, texts, size), seed, exercise=True)
    size = max(size, sample.smallest)
    told = sample.told(size)
    again = (NEEDLE.format(type=kind.value, key=key, value=value) for key, value in chance.sample(told, len(told)))
    return "\n".join([f"{sample.prompt(size)} {', '.join(sample.answers)}.", *again])


def _facts(chance: random.Random, passages: Sequence[str], seed: int) -> str:
    """People's passages among others, questions about them, and their passages again."""
    known = [person(chance.randrange(people(seed, True)), seed, True) for _ in range(_between(chance, *PEOPLE))]
    others = chance.sample(passages, _between(chance, *PASSAGES) - 1)
    shown = [*(one.passage for one in known), *others]
    chance.shuffle(shown)
    context = "\n\n".join(f"Document {i}:\n{passage}" for i, passage in enumerate(shown, 1))
    every = [pair for one in known for pair in one.asked]
    (query, answer), *rest = chance.sample(every, len(FACTS))
    more = "".join(ASK.format(query=query, answer=answer) for query, answer in rest)
    again = "\n\n".join(one.passage for one in chance.sample(known, len(known)))
    return f"{TEMPLATE.format(context=context, query=query)} {answer}{more}\n\n{again}"


def _recital(chance: random.Random, texts: Sequence[Sequence[str]], name: str, seed: int) -> str:
    """A few needles, a person or two, or a piece of text, told over and over: what recall is learned from first."""
    kind = chance.choice(("needles", "people", "text"))
    if kind == "needles":
        sample = Sample(TASKS["niah_multikey_2"], (), name, exercise=True)
        pairs = sample.told(_between(chance, *RECITED["needles"]))
        told = [NEEDLE.format(type="numbers", key=key, value=value) for key, value in pairs]
    elif kind == "people":
        known = range(_between(chance, *RECITED["people"]))
        told = [person(chance.randrange(people(seed, True)), seed, True).passage for _ in known]
    else:
        told = [" ".join(_piece(chance, texts, _between(chance, *RECITED["text"])))]
    return "\n".join(one for _ in range(TIMES) for one in chance.sample(told, len(told)))


def _piece(chance: random.Random, texts: Sequence[Sequence[str]], size: int) -> Sequence[str]:
    """`size` words from somewhere in one of the texts."""
    words = chance.choice(texts)
    first = chance.randrange(max(len(words) - size, 1))
    return words[first : first + size]


def _between(chance: random.Random, low: int, high: int) -> int:
    """From `low` to `high`, each doubling as likely as the next."""
    return round(math.exp(chance.uniform(math.log(low), math.log(high))))
