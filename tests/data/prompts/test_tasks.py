"""All tasks and their answers. (`encoding` is tested in tests/evaluation/test_answers.py.)"""

from __future__ import annotations

import pytest

from refine.data.prompts import longbench, needles
from refine.data.prompts.questions import TASKS as QUESTION_TASKS
from refine.data.prompts.tasks import PAPER_LONGBENCH, QUESTIONS, TASKS, known_task
from refine.errors import SettingError


def test_every_prompt_that_can_be_made_or_read_has_a_task():
    families = {
        family: {name for name, task in TASKS.items() if task.family == family}
        for family in ("needles", "questions", "longbench")
    }
    assert families["needles"] == set(needles.TASKS) and families["longbench"] == set(longbench.TASKS)
    assert families["questions"] == set(QUESTIONS) == set(QUESTION_TASKS.values())
    assert len(PAPER_LONGBENCH) == 12 and set(PAPER_LONGBENCH) < families["longbench"]


def test_the_reference_is_all_values_of_needles_and_the_first_answer_of_others():
    assert TASKS["niah_multivalue"].reference(["1", "2"]) == "1, 2"
    assert TASKS["ruler_squadqa"].reference(["Ann", "Anne"]) == "Ann"


def test_code_is_answered_on_a_new_line_and_classes_on_one_line():
    assert {name for name, task in TASKS.items() if task.before_answer == "\n"} == {"lcc", "repobench-p"}
    assert {name for name, task in TASKS.items() if task.first_line} == {"trec", "triviaqa", "samsum"}


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(SettingError, match=r"no task 'niah_singel_1' \(did you mean 'niah_single_1'\?\)"):
        known_task("niah_singel_1")
