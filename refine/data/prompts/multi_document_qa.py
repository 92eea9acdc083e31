"""Questions whose answers stand in one of many passages, in RULER's form (arXiv 2404.06654, qa.py).

A prompt holds the question's own passages, then distractors from the same article, then other passages, until it is
full. The wording is that of the files published with arXiv 2602.16704. Differences from RULER, with the reason:
- the prompt is filled passage by passage (RULER: ten at a time), so that it comes near its length;
- each sample shuffles its passages anew (RULER: with one fixed seed, which puts the answer in the same place);
- of HotpotQA's ten passages, the two with the answer are always kept and the other eight are the first distractors, so
  that lengths too short for ten passages exist.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refine.data.hub import load_data_set
from refine.data.prompts.chat import ChatForm
from refine.data.prompts.fit_to_length import largest_that_fits
from refine.data.prompts.prompt import Prompt, answers_in
from refine.errors import DataError, reason
from refine.system.readers import mapping, parsed_json, read_text

ANSWER_TOKENS = 32  # RULER's tokens to generate
ANSWER_BEGINS = "Answer:"
ASK = "Answer the question based on the given passages. Only give me the answer and do not output any other words.\n\n"
TEMPLATE = ASK + "The following are given passages.\n{context}\n\n" + ASK + "Question: {query}\n" + ANSWER_BEGINS


@dataclass(frozen=True)
class Question:
    """own: numbers of the passages with the answer. related: those of the same article, the first distractors."""

    query: str
    answers: tuple[str, ...]
    own: tuple[int, ...]
    related: tuple[int, ...] = ()


@dataclass(frozen=True)
class QuestionPool:
    """Passages, numbered by their place, and questions about them."""

    passages: tuple[str, ...]
    questions: tuple[Question, ...]

    def keep(self, wanted: Iterable[int], questions: Iterable[Question]) -> QuestionPool:
        """The pool of the passages `wanted` and of those `questions` whose own passages are all among them."""
        numbers = {old: new for new, old in enumerate(sorted(set(wanted)))}
        kept = [
            Question(
                question.query,
                question.answers,
                tuple(numbers[p] for p in question.own),
                tuple(numbers[p] for p in question.related if p in numbers),
            )
            for question in questions
            if all(p in numbers for p in question.own)
        ]
        return QuestionPool(tuple(self.passages[p] for p in numbers), tuple(kept))


def read_squad(source: str | Path, split: str = "validation", revision: str | None = None) -> QuestionPool:
    """SQuAD v2 (or v1): its JSON file, or a data set on the hub (or its folder) such as rajpurkar/squad_v2.

    Leaves out questions without an answer. Raises DataError: no such file, not SQuAD's form, no question left.
    """
    pool = _Builder()
    for article, paragraphs in _squad_articles(source, split, revision):
        numbers = [pool.passage(context) for context, _ in paragraphs]
        for number, (_, questions) in zip(numbers, paragraphs, strict=True):
            related = tuple(sorted({n for n in numbers if n != number}))
            for query, answers in questions:
                pool.ask(query, answers, (number,), related, f"{source}: article {article!r}")
    return pool.done(str(source))


def read_hotpotqa(source: str | Path, split: str = "validation", revision: str | None = None) -> QuestionPool:
    """HotpotQA, distractor setting: its JSON file, or a data set on the hub (or its folder) such as hotpotqa/hotpot_qa.

    Raises DataError: no such file, not HotpotQA's form, no question left.
    """
    pool = _Builder()
    for row in _rows(source, "distractor", split, revision, _list_of_rows):
        row = mapping(row, f"{source}: a row", "a question of HotpotQA's")
        with _Form(source, "HotpotQA", row.get("_id", row.get("id"))):
            context, facts = row["context"], row["supporting_facts"]
            pairs = zip(context["title"], context["sentences"], strict=True) if isinstance(context, dict) else context
            titles = set(facts["title"]) if isinstance(facts, dict) else {title for title, _ in facts}
            numbers = {_text(title): pool.passage(f"{title}\n{''.join(sentences)}") for title, sentences in pairs}
            own = tuple(number for title, number in numbers.items() if title in titles)
            related = tuple(number for title, number in numbers.items() if title not in titles)
            query, answers = _text(row["question"]), answers_in(row["answer"])
        pool.ask(query, answers, own, related, str(source))
    return pool.done(str(source))


def without_shared_passages(train: QuestionPool, test: QuestionPool) -> QuestionPool:
    """`train` without the passages that are also in `test` (case and spaces aside), and without their questions."""
    held_out = {_plain(passage) for passage in test.passages}
    wanted = [number for number, passage in enumerate(train.passages) if _plain(passage) not in held_out]
    return train.keep(wanted, train.questions)


def split(pool: QuestionPool, test_questions: int, seed: int) -> tuple[QuestionPool, QuestionPool]:
    """(train, test) that share no passage: `test_questions` are drawn and take their own and related passages along.

    Raises DataError if there are not enough questions, or if none is left to train on.
    """
    if test_questions >= len(pool.questions):
        raise DataError(f"{test_questions} test questions asked for, but there are {len(pool.questions)} in all")
    drawn = random.Random(f"{seed}/test").sample(pool.questions, test_questions)
    held_out = {number for question in drawn for number in (*question.own, *question.related)}
    train = pool.keep(set(range(len(pool.passages))) - held_out, pool.questions)
    if not train.questions:
        raise DataError(f"with {test_questions} test questions no training question is left: ask for fewer")
    return train, pool.keep(held_out, drawn)


def make_questions(
    pool: QuestionPool,
    task: str,
    length: int,
    samples: int,
    tokenizer: Any,
    seed: int = 42,
    answer_tokens: int = ANSWER_TOKENS,
    chat: ChatForm | None = None,
) -> list[Prompt]:
    """`samples` prompts with prompt + `answer_tokens` <= `length` [tokens], in the form of `chat`; questions that do
    not fit are skipped.

    depths: the place of each own passage of the question [% of the passages]. Raises DataError if fewer than `samples`
    questions exist or fit.
    """
    order = random.Random(f"{seed}/{task}/questions").sample(range(len(pool.questions)), len(pool.questions))
    made: list[Prompt] = []
    for index in order:
        if len(made) == samples:
            break
        seeded = f"{seed}/{task}/{index}"
        prompt = _prompt(pool, pool.questions[index], task, length, tokenizer, seeded, answer_tokens, chat)
        if prompt is not None:
            made.append(prompt)
    if len(made) < samples:
        raise DataError(
            f"{task}: {samples} questions asked for; of {len(pool.questions)}, {len(made)} fit with their "
            f"passages in {length} tokens: ask for fewer, or a greater length"
        )
    return made


def _prompt(
    pool: QuestionPool,
    question: Question,
    task: str,
    length: int,
    tokenizer: Any,
    seed: str,
    answer_tokens: int,
    chat: ChatForm | None,
) -> Prompt | None:
    chance = random.Random(seed)
    related = chance.sample(question.related, len(question.related))
    taken = {*question.own, *related}
    others = [n for n in chance.sample(range(len(pool.passages)), min(len(pool.passages), length)) if n not in taken]
    candidates = [*question.own, *related, *others]

    def arranged(n: int) -> list[int]:
        return random.Random(f"{seed}/order").sample(candidates[:n], n)

    def text(n: int) -> str:
        passages = (f"Document {i}:\n{pool.passages[number]}" for i, number in enumerate(arranged(n), 1))
        plain = TEMPLATE.format(context="\n\n".join(passages), query=question.query)
        return plain if chat is None else chat(plain, ANSWER_BEGINS)

    n, tokens = largest_that_fits(
        lambda n: len(tokenizer(text(n))["input_ids"]), length - answer_tokens, len(question.own), len(candidates)
    )
    if tokens > length - answer_tokens:
        return None
    places = arranged(n)
    depths = tuple(100 * places.index(number) / n for number in question.own)
    return Prompt(text(n), question.answers, task, length, answer_tokens, tokens, depths)


class _Builder:
    """Collects passages, each once, and questions."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.questions: list[Question] = []

    def passage(self, text: str) -> int:
        return self.numbers.setdefault(text, len(self.numbers))

    def ask(
        self, query: str, answers: Sequence[str], own: tuple[int, ...], related: tuple[int, ...], where: str
    ) -> None:
        accepted = tuple(dict.fromkeys(answer for answer in answers if answer))
        if not accepted:
            return  # SQuAD v2's questions without an answer
        if not own:
            raise DataError(f"{where}: the passages of question {query!r} are missing")
        self.questions.append(Question(query, accepted, own, related))

    def done(self, where: str) -> QuestionPool:
        if not self.questions:
            raise DataError(f"{where}: no question with an answer")
        return QuestionPool(tuple(self.numbers), tuple(self.questions))


class _Form:
    """Turns a missing or mistyped field of a row into a DataError that names file and row."""

    def __init__(self, source: str | Path, form: str, row: object) -> None:
        self.where = f"{source}: row {reason(repr(row), 60)} is not in {form}'s form"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (LookupError, TypeError, ValueError, AttributeError)):
            raise DataError(f"{self.where} ({type(error).__name__}: {reason(error, 100)})") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, found {type(value).__name__}")
    return value


Paragraph = tuple[str, list[tuple[str, list[str]]]]  # context, [(question, accepted answers)]


def _squad_articles(source: str | Path, split: str, revision: str | None) -> Iterable[tuple[str, list[Paragraph]]]:
    articles: dict[str, dict[str, list[tuple[str, list[str]]]]] = {}
    for row in _rows(source, None, split, revision, _squad_file):
        with _Form(source, "SQuAD", row.get("id")):
            asked = articles.setdefault(_text(row["title"]), {}).setdefault(_text(row["context"]), [])
            texts = row["answers"]["text"]
            texts = [texts] if isinstance(texts, str) else texts
            asked.append((_text(row["question"]), [_text(answer) for answer in texts]))
    return [(title, list(paragraphs.items())) for title, paragraphs in articles.items()]


def _squad_file(content: Any) -> list[dict[str, Any]]:
    """The rows of SQuAD's nested file, as the hub has them."""
    return [
        {
            "id": qa.get("id"),
            "title": article["title"],
            "context": paragraph["context"],
            "question": qa["question"],
            "answers": {"text": [] if qa.get("is_impossible") else [answer["text"] for answer in qa["answers"]]},
        }
        for article in content["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]


def _list_of_rows(content: Any) -> list[dict[str, Any]]:
    if not isinstance(content, list):
        raise TypeError("expected a list of questions")
    return content


def _rows(
    source: str | Path,
    config: str | None,
    split: str,
    revision: str | None,
    of_file: Callable[[Any], list[dict[str, Any]]],
) -> Iterable[dict[str, Any]]:
    path = Path(source)
    if path.suffix == ".json":
        content = parsed_json(read_text(path, "a data set of questions"), str(source))
        with _Form(source, "the data set", "(file)"):
            return of_file(content)
    return load_data_set(str(source), config, split, revision)


def _plain(passage: str) -> str:
    return " ".join(passage.casefold().split())
