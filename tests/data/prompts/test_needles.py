"""RULER's needle prompts: form, lengths, seeds, and refusals."""

from __future__ import annotations

import re

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refine.data.prompts.needles import DEPTHS, TASKS, make_needles, write_needles
from refine.data.prompts.prompt import load_prompts
from refine.errors import SettingError
from refine.settings.prompts import NEEDLE_TASKS

ESSAY = (
    'It was late. "Who goes there?" he asked; nobody answered! The 3 ships had left (so it seemed) at dawn. '
    "Rain fell on the harbour, on the roofs, and on the men who waited. They said nothing more about it. "
) * 40


class Words:
    """A tokenizer that counts pieces of words, and one token for the beginning."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [0, *range(len(re.findall(r"\w{1,4}|[^\w\s]|\n", text)))]}


def tokens(text: str) -> int:
    return len(Words()(text)["input_ids"])


def test_settings_and_generator_know_the_same_tasks():
    assert tuple(TASKS) == NEEDLE_TASKS


def test_a_prompt_asks_for_one_value_in_the_singular_and_for_several_in_the_plural():
    [one] = make_needles("niah_single_1", 400, 1, Words())
    key = re.search(r"numbers for (\S+ ?\S*) is: \d{7}\.", one.prompt)[1]
    assert one.prompt.startswith(
        "A special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards.\nThe grass is green. The sky is blue. The sun is yellow. "
        "Here we go. There and back again.\n"
    )
    assert one.prompt.endswith(
        f"\nWhat is the special magic number for {key} mentioned in the provided text? "
        f"The special magic number for {key} mentioned in the provided text is"
    )
    [many] = make_needles("niah_multiquery", 700, 1, Words(), ESSAY)
    assert many.prompt.startswith("Some special magic numbers are hidden within")
    asked = re.search(r"What are all the special magic numbers for ([^?]+), and ([^?]+) mentioned", many.prompt)
    keys = [*asked[1].split(", "), asked[2]]
    needles = dict(re.findall(r"numbers for ([^:]+) is: (\d+)\.", many.prompt))
    assert many.answers == tuple(needles[key] for key in keys)


@pytest.mark.parametrize(
    ("task", "needles", "answers", "value"),
    [
        ("niah_single_1", 1, 1, r"\d{7}"),
        ("niah_single_2", 1, 1, r"\d{7}"),
        ("niah_single_3", 1, 1, r"[0-9a-f-]{36}"),
        ("niah_multikey_1", 4, 1, r"\d{7}"),
        ("niah_multikey_2", None, 1, r"\d{7}"),
        ("niah_multikey_3", None, 1, r"[0-9a-f-]{36}"),
        ("niah_multivalue", 4, 4, r"\d{7}"),
        ("niah_multiquery", 4, 4, r"\d{7}"),
    ],
)
def test_each_task_hides_and_asks_what_ruler_s_table_says(task, needles, answers, value):
    for prompt in make_needles(task, 900, 5, Words(), ESSAY):
        found = re.findall(rf"One of the special magic \w+ for ([\w '.-]+?) is: ({value})\.", prompt.prompt)
        assert len(found) == needles if needles else len(found) > 8
        assert len(prompt.answers) == answers
        asked = prompt.prompt.rsplit("?", 1)[1]
        assert sorted(prompt.answers) == sorted(v for key, v in found if key in asked)
        assert all(0 <= depth <= 100 for depth in prompt.depths) and len(prompt.depths) == answers


@pytest.mark.parametrize("task", TASKS)
@settings(max_examples=15, deadline=None)
@given(length=st.integers(450, 3000), seed=st.integers(0, 99))
def test_prompt_and_answer_fill_the_length_and_never_exceed_it(task, length, seed):
    for prompt in make_needles(task, length, 2, Words(), ESSAY, seed=seed):
        assert prompt.prompt_tokens == tokens(prompt.prompt)
        assert length - 80 < prompt.prompt_tokens + 128 <= length


def test_an_essay_needle_stands_between_sentences_at_the_depth_it_reports():
    for prompt in make_needles("niah_single_2", 2000, 20, Words(), ESSAY):
        before, after = re.split(r" ?One of the special magic numbers for [^:]+: \d+\. ?", prompt.prompt.split("\n")[1])
        assert before == "" or after == "" or before[-1] in '.!?"'  # the text's last sentence is cut, as RULER's is
        share = 100 * len(before) / (len(before) + len(after))
        assert prompt.depths[0] in DEPTHS and abs(share - prompt.depths[0]) < 4


def test_essay_needles_reach_all_depths():
    depths = {d for prompt in make_needles("niah_multivalue", 700, 60, Words(), ESSAY) for d in prompt.depths}
    assert depths == {float(d) for d in DEPTHS}


def test_a_sample_depends_on_seed_and_number_and_not_on_how_many_are_made():
    ten = make_needles("niah_multikey_3", 900, 10, Words(), seed=5)
    assert make_needles("niah_multikey_3", 900, 4, Words(), seed=5) == ten[:4]
    assert len({prompt.prompt for prompt in ten}) == 10
    assert make_needles("niah_multikey_3", 900, 1, Words(), seed=6)[0] != ten[0]


def test_a_short_essay_is_repeated_to_fill_the_length():
    [prompt] = make_needles("niah_single_2", 2000, 1, Words(), "Rain fell all day. The men waited.")
    assert prompt.prompt.count("Rain fell all day.") > 50


def test_the_same_input_writes_the_same_bytes_and_reads_back(tmp_path):
    first = write_needles(["niah_single_1"], [400, 500], 3, Words(), "", 1, tmp_path / "a")
    again = write_needles(["niah_single_1"], [400, 500], 3, Words(), "", 1, tmp_path / "b")
    assert [path.name for path in first] == ["niah_single_1_400.parquet", "niah_single_1_500.parquet"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert load_prompts(first[0]) == make_needles("niah_single_1", 400, 3, Words(), "", 1)
    assert pq.read_schema(first[0]).names[:5] == ["prompt", "answers", "task", "length", "answer_tokens"]


def test_fewer_answer_tokens_let_short_lengths_exist():
    with pytest.raises(
        SettingError,
        match=r"niah_single_1 does not fit in 200 tokens: its shortest prompt takes \d+ and the answer 128; use",
    ) as refused:
        make_needles("niah_single_1", 200, 1, Words())
    needed = int(re.search(r"lengths well above (\d+)", str(refused.value))[1])
    assert make_needles("niah_single_1", needed + 20, 1, Words())
    [prompt] = make_needles("niah_single_1", 200, 1, Words(), answer_tokens=32)
    assert prompt.prompt_tokens + 32 <= 200 and prompt.answer_tokens == 32


def test_nothing_is_written_when_one_task_cannot_be_made(tmp_path):
    with pytest.raises(SettingError, match=r"no needle task 'niah_singel_1' \(did you mean 'niah_single_1'\?\)"):
        write_needles(["niah_single_1", "niah_singel_1"], [400], 1, Words(), "", 1, tmp_path)
    with pytest.raises(SettingError, match="does not fit in 150 tokens"):
        write_needles(["niah_single_1"], [400, 150], 1, Words(), "", 1, tmp_path)
    with pytest.raises(SettingError, match="hides its needles in essays, and there is none"):
        write_needles(["niah_single_2"], [400], 1, Words(), " ", 1, tmp_path)
    assert not list(tmp_path.iterdir())
