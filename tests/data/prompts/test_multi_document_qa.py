"""Multi-document questions: SQuAD's and HotpotQA's files, RULER's form, disjoint splits."""

from __future__ import annotations

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refine.data.prompts.multi_document_qa import (
    ASK,
    QuestionPool,
    make_questions,
    read_hotpotqa,
    read_squad,
    split,
    without_shared_passages,
)
from refine.errors import DataError, ServiceError
from refine.evaluation.scorers import any_found


class Words:
    """A tokenizer of words."""

    def __call__(self, text: str) -> dict[str, list[str]]:
        return {"input_ids": text.split()}


def squad(articles: int = 6, paragraphs: int = 5, about: str = "town") -> dict:
    """SQuAD v2's file: one answerable question a paragraph, and one question without an answer an article."""
    data = []
    for a in range(articles):
        made = []
        for p in range(paragraphs):
            qas = [
                {
                    "id": f"{a}-{p}",
                    "question": f"Who ruled {about} {a} in year {p}?",
                    "answers": [{"text": f"King {about}{a}x{p}", "answer_start": 0}] * 2,
                    "is_impossible": False,
                }
            ]
            made.append({"context": f"In year {p} King {about}{a}x{p} ruled {about} {a}, it is said.", "qas": qas})
        made[0]["qas"].append({"id": f"{a}-no", "question": "Why?", "answers": [], "is_impossible": True})
        data.append({"title": f"{about} {a}", "paragraphs": made})
    return {"version": "v2.0", "data": data}


def hotpot(rows: int = 5) -> list[dict]:
    """HotpotQA's file: ten paragraphs a question, two of them supporting; some paragraphs shared between questions."""
    made = []
    for r in range(rows):
        titles = [f"Own {r} a", f"Own {r} b"] + [f"Other {i}" for i in range(r, r + 8)]
        made.append(
            {
                "_id": f"id{r}",
                "question": f"What joins {r}?",
                "answer": f"bridge{r}",
                "supporting_facts": [[f"Own {r} a", 0], [f"Own {r} b", 1], [f"Own {r} b", 0]],
                "context": [
                    [title, [f"{title} says this.", f" It names bridge{r}." if "Own" in title else " No."]]
                    for title in titles
                ],
            }
        )
    return made


@pytest.fixture
def squad_file(tmp_path):
    path = tmp_path / "dev-v2.0.json"
    path.write_text(json.dumps(squad()))
    return path


@pytest.fixture
def hotpot_file(tmp_path):
    path = tmp_path / "hotpot_dev_distractor_v1.json"
    path.write_text(json.dumps(hotpot()))
    return path


def passages_in(prompt: str) -> list[str]:
    body = prompt.removeprefix(ASK + "The following are given passages.\n").split("\n\n" + ASK)[0]
    parts = re.split(r"(?:^|\n\n)Document \d+:\n", body)
    return parts[1:]


def test_squad_s_file_gives_passages_by_article_and_answerable_questions_only(squad_file):
    pool = read_squad(squad_file)
    assert len(pool.passages) == 30 and len(pool.questions) == 30
    question = pool.questions[7]
    assert question.answers == ("King town1x2",)  # accepted answers once each
    assert pool.passages[question.own[0]].startswith("In year 2 King town1x2")
    assert len(question.related) == 4 and all("town 1" in pool.passages[n] for n in question.related)


def test_squad_from_the_hub_s_columns_is_the_same_pool(squad_file, tmp_path):
    rows = [
        {
            "id": qa["id"],
            "title": article["title"],
            "context": paragraph["context"],
            "question": qa["question"],
            "answers": {"text": [a["text"] for a in qa["answers"]], "answer_start": [0 for _ in qa["answers"]]},
        }
        for article in squad()["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]
    folder = tmp_path / "squad_v2"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "validation-0.parquet")
    assert read_squad(folder) == read_squad(squad_file)


def test_hotpotqa_keeps_the_supporting_passages_and_the_others_as_first_distractors(hotpot_file):
    pool = read_hotpotqa(hotpot_file)
    question = pool.questions[3]
    assert [pool.passages[n].split("\n")[0] for n in question.own] == ["Own 3 a", "Own 3 b"]
    assert len(question.related) == 8 and question.answers == ("bridge3",)
    assert len(pool.passages) == 5 * 2 + 12  # a passage that several questions share is stored once
    assert pool.passages[question.own[0]] == "Own 3 a\nOwn 3 a says this. It names bridge3."


def test_hotpotqa_from_the_hub_s_columns_is_the_same_pool(hotpot_file, tmp_path):
    rows = [
        {
            "id": row["_id"],
            "question": row["question"],
            "answer": row["answer"],
            "supporting_facts": {"title": [t for t, _ in row["supporting_facts"]], "sent_id": [0, 1, 0]},
            "context": {"title": [t for t, _ in row["context"]], "sentences": [s for _, s in row["context"]]},
        }
        for row in hotpot()
    ]
    folder = tmp_path / "hotpot_qa"
    folder.mkdir()
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: distractor\n  data_files:\n  - split: validation\n    path: data.parquet\n---\n"
    )
    pq.write_table(pa.Table.from_pylist(rows), folder / "data.parquet")
    assert read_hotpotqa(folder) == read_hotpotqa(hotpot_file)


def test_prompts_have_the_published_form_and_stay_within_the_length(squad_file):
    pool = read_squad(squad_file)
    for prompt in make_questions(pool, "ruler_squadqa", 300, 20, Words(), seed=3):
        assert prompt.prompt_tokens == len(prompt.prompt.split()) and 300 - 32 - 25 < prompt.prompt_tokens <= 300 - 32
        assert prompt.prompt.startswith(ASK + "The following are given passages.\nDocument 1:\n")
        [query] = re.findall(r"Question: (.+)\nAnswer:$", prompt.prompt)
        [question] = [q for q in pool.questions if q.query == query]
        found = passages_in(prompt.prompt)
        assert len(found) == len(set(found)) and {pool.passages[n] for n in (*question.own, *question.related)} <= set(
            found
        )
        assert prompt.depths == (100 * found.index(pool.passages[question.own[0]]) / len(found),)
        assert prompt.answers == question.answers


def test_distractors_of_the_same_article_come_first_when_not_all_fit(squad_file):
    pool = read_squad(squad_file)
    for prompt in make_questions(pool, "ruler_squadqa", 130, 10, Words(), seed=3):
        town = re.search(r"Who ruled (town \d)", prompt.prompt)[1]
        assert all(town in passage for passage in passages_in(prompt.prompt))


def test_the_answer_s_passage_is_at_many_places(squad_file):
    depths = {p.depths[0] for p in make_questions(read_squad(squad_file), "ruler_squadqa", 300, 30, Words())}
    assert len(depths) > 8


def test_the_same_seed_gives_the_same_prompts_and_more_samples_extend_them(squad_file):
    pool = read_squad(squad_file)
    ten = make_questions(pool, "ruler_squadqa", 300, 10, Words(), seed=1)
    assert make_questions(pool, "ruler_squadqa", 300, 4, Words(), seed=1) == ten[:4]
    assert make_questions(pool, "ruler_squadqa", 300, 4, Words(), seed=2) != ten[:4]


def test_a_split_shares_no_passage_and_every_question_can_be_answered(squad_file, hotpot_file):
    for pool, drawn in ((read_squad(squad_file), 4), (read_hotpotqa(hotpot_file), 1)):
        train, test = split(pool, drawn, seed=1)
        assert not set(train.passages) & set(test.passages)
        assert len(test.questions) == drawn and train.questions
        for part in (train, test):
            for question in part.questions:
                text = " ".join(part.passages[n] for n in question.own)
                assert any_found(text, question.answers) == 1.0


def test_a_training_pool_loses_the_passages_of_the_test_pool_whatever_their_case_and_spaces():
    test = QuestionPool(("The  cat sat.",), ())
    train = QuestionPool(("the cat SAT.", "A dog."), ())
    assert without_shared_passages(train, test).passages == ("A dog.",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"data": [{"title": "x"}]}', r"not in the data set's form \(KeyError: 'paragraphs'\)"),
        ("{oops", r"not valid JSON"),
        ('{"data": []}', "no question with an answer"),
    ],
)
def test_a_file_that_is_not_squad_is_one_line(content, message, tmp_path):
    path = tmp_path / "squad.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as refused:
        read_squad(path)
    assert "\n" not in str(refused.value) and str(path) in str(refused.value)


def test_a_hotpotqa_row_without_context_is_named(tmp_path):
    path = tmp_path / "hotpot.json"
    path.write_text(json.dumps([hotpot()[0], {"_id": "bad", "question": "?", "answer": "x"}]))
    with pytest.raises(DataError, match="row 'bad' is not in HotpotQA's form"):
        read_hotpotqa(path)


def test_missing_files_unreachable_names_and_too_many_samples_are_refused(squad_file, tmp_path):
    with pytest.raises(DataError, match=r"none\.json: no such file"):
        read_squad(tmp_path / "none.json")
    with pytest.raises(ServiceError, match="data set 'no/such': no such folder"):
        read_squad("no/such")
    pool = read_squad(squad_file)
    with pytest.raises(DataError, match="31 questions asked for; of 30, 30 fit"):
        make_questions(pool, "ruler_squadqa", 300, 31, Words())
    with pytest.raises(DataError, match="of 30, 0 fit with their passages in 70 tokens"):
        make_questions(pool, "ruler_squadqa", 70, 1, Words())
    with pytest.raises(DataError, match="30 test questions asked for, but there are 30 in all"):
        split(pool, 30, seed=1)
    with pytest.raises(DataError, match="ask for fewer"):
        split(pool, 29, seed=1)
