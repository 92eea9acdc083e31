"""Invented people: only their passages answer a question about them, and no other split has their names."""

from __future__ import annotations

import re

import pytest

from refine.data.prompts.invented_people import cut_passages, invented_facts, people, person
from refine.data.prompts.multi_document_qa import make_questions
from refine.errors import DataError


class Words:
    """A tokenizer of words."""

    def __call__(self, text: str) -> dict[str, list[str]]:
        return {"input_ids": text.split()}


def test_invented_people_answer_one_question_and_share_nothing_between_splits():
    real = ["The king came in. The ship was lost at sea. " * 40, "Nobody spoke for a while. The rain went on. " * 40]
    train, test = invented_facts(real[:1], 300, seed=1), invented_facts(real[1:], 100, seed=1, first=300)
    assert not set(train.passages) & set(test.passages)
    answers = [question.answers[0] for pool in (train, test) for question in pool.questions]
    assert len(set(answers)) == 400
    for pool in (train, test):
        for question in pool.questions:
            holding = [
                n for n, passage in enumerate(pool.passages) if re.search(rf"\b{question.answers[0]}\b", passage)
            ]
            assert tuple(holding) == question.own


def test_invented_facts_become_prompts_with_people_before_real_passages_as_distractors():
    pool = invented_facts(["The king came in. The ship was lost at sea. " * 40], 12, seed=1)
    for prompt in make_questions(pool, "factsqa", 400, 12, Words()):
        people = [p for p in prompt.prompt.split("\n\n") if " was a" in p and "who" in p]
        assert len(people) >= 4
        assert sum(prompt.answers[0] in p for p in people) == 1


def test_passages_are_cut_at_sentences():
    passages = cut_passages(["One two three four. Five six! Seven eight nine. Ten."], words=5)
    assert passages == ["One two three four. Five six!"]


def test_a_person_of_the_exercises_shares_no_name_with_one_of_the_tests():
    def answers(exercise: bool) -> set[str]:
        return {answer for number in range(200) for _, answer in person(number, 1, exercise).asked}

    assert len(answers(True)) == len(answers(False)) == 800 and not answers(True) & answers(False)
    assert person(3, 1) == person(3, 1) != person(3, 2)


def test_more_people_than_there_are_names_for_are_refused():
    assert people(1) > 1000
    with pytest.raises(DataError, match=rf"names for {people(1)} people, not for {people(1) + 1}"):
        invented_facts([], 1, seed=1, first=people(1))
