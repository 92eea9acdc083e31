"""Recall exercises have the form of the tests and their answers, and share nothing that a test can ask for."""

from __future__ import annotations

import re

import pytest

from refine.data.prompts import invented_people, needles
from refine.data.prompts.multi_document_qa import ASK
from refine.data.prompts.prompt import kept_for_exercises
from refine.data.prompts.recall_exercises import NEEDLES, exercises
from refine.settings.base import validated
from refine.settings.data import ExercisesSource

TEXTS = [f"Sentence {n} of play {play} says a thing or two about the sea. " * 40 for n in range(3) for play in "ab"]
NEEDLE = re.compile(r"special magic numbers? for ([\w.'-]+) is: (\d+)\.")


def texts(found) -> dict[str, str]:
    return {one.id: one.text for one in found}


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return texts(exercises(TEXTS, 400, seed=3, recitals_share=0.2))


def test_all_kinds_come_and_the_same_arguments_give_the_same_texts(made):
    assert {name.split("/")[0] for name in made} == {"facts", "recital", *NEEDLES}
    assert texts(exercises(TEXTS, 400, seed=3, recitals_share=0.2)) == made
    assert texts(exercises(TEXTS, 50, seed=3, recitals_share=0.2)) == dict(list(made.items())[:50])


def test_no_key_and_no_value_is_one_that_a_test_can_have(made):
    pairs = [pair for text in made.values() for pair in NEEDLE.findall(text)]
    assert len(pairs) > 300
    assert all(kept_for_exercises(key) and kept_for_exercises(value) for key, value in pairs)
    for seed in range(3):
        for prompt in needles.make_needles("niah_multikey_2", 600, 5, _Words(), seed=seed):
            tested = NEEDLE.findall(prompt.prompt)
            assert tested and not any(kept_for_exercises(part) for pair in tested for part in pair)


def test_no_name_is_one_that_a_test_can_have(made):
    invented = re.compile(r"\b(?:born in the town of|learned the trade from|workshop in|the ship) (\w+)\b")
    names = {name for text in made.values() for name in invented.findall(text)}
    assert len(names) > 200 and all(map(kept_for_exercises, names))
    pool = invented_people.invented_facts(TEXTS, 100, seed=1)
    tested = {answer for question in pool.questions for answer in question.answers}
    assert not any(map(kept_for_exercises, tested))


def test_a_needle_exercise_answers_its_prompt_and_repeats_all_needles(made):
    for name, text in made.items():
        task = name.split("/")[0]
        if task not in NEEDLES:
            continue
        context, rest = text.split("\nWhat ", 1) if "\nWhat " in text else text.rsplit("\nWhat ", 1)
        hidden = NEEDLE.findall(context)
        first, *again = rest.split("\n")
        asked = re.findall(r"\d{7}", first)
        assert asked and set(asked) <= {value for _, value in hidden}
        assert sorted(NEEDLE.findall("\n".join(again))) == sorted(hidden)


def test_the_answers_of_a_facts_exercise_stand_in_its_passages(made):
    exercises_of_facts = [text for name, text in made.items() if name.startswith("facts/")]
    for text in exercises_of_facts:
        assert text.count(ASK) == 2
        passages = text.split(ASK)[1]
        answers = re.findall(r"Answer: (\w+)", text)
        assert len(answers) == 4 and all(answer in passages for answer in answers)


def test_shares_above_one_are_refused():
    with pytest.raises(Exception, match="exceed 1"):
        validated(
            ExercisesSource, {"texts": "plays", "documents": 1, "facts_share": 0.7, "recitals_share": 0.7}, "data"
        )


class _Words:
    """A tokenizer of words."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [0] * len(text.split())}


def test_marks_stand_before_answers_and_repeated_values():
    for name, text, marks in exercises(TEXTS, 300, seed=3):
        assert list(marks) == sorted(set(marks)), name
        told = {text[:mark].count(text[mark : mark + 7]) > 0 for mark in marks}
        kind = name.split("/")[0]
        if kind in NEEDLES:
            assert told == {True} and all(text[mark : mark + 7].isdigit() for mark in marks)
        elif kind == "facts":
            answers = [text[mark:].split("\n")[0] for mark in marks]
            assert all(text[:mark].count(answer) for mark, answer in zip(marks, answers, strict=True)) and answers
        elif marks:
            assert told == {True}


@pytest.mark.parametrize("task", ["niah_single_1", "niah_multikey_1"])
def test_needle_exercises_have_the_length_that_is_asked_for(task):
    for _, text, marks in exercises(TEXTS, 20, 1, 0, 0, tasks=(task,), characters=(2500, 3000)):
        assert 2300 < marks[0] < 3000 < len(text) + 500
