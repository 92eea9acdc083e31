"""The stage of questions: three sets for each length that share no passage, from invented facts or a data set."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refine.data.prompts.multi_document_qa import ASK
from refine.data.prompts.prompt import load_prompts
from refine.data.prompts.questions import write_questions
from refine.errors import DataError, SettingError
from refine.settings.base import validated
from refine.settings.prompts import QuestionsSettings


class Words:
    """A tokenizer of words."""

    def __call__(self, text: str) -> dict[str, list[str]]:
        return {"input_ids": text.split()}


@pytest.fixture
def data(tmp_path):
    """Raw documents in which no sentence comes twice."""
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        texts = [
            " ".join(f"In {split} {i} the king number {j} spoke of rain and ships." for j in range(400)) for i in (1, 2)
        ]
        table = pa.table({"id": ["a", "b"], "text": texts})
        pq.write_table(table, tmp_path / "data" / f"{split}.parquet")
    return tmp_path / "data"


def passages(path) -> set[str]:
    found = set()
    for prompt in load_prompts(path):
        body = prompt.prompt.removeprefix(ASK + "The following are given passages.\n").split("\n\n" + ASK)[0]
        found |= {part.split("\n", 1)[1] for part in body.split("\n\n")}
    return found


def test_three_sets_of_invented_facts_share_no_passage_and_hide_people_among_real_ones(data, tmp_path):
    of = QuestionsSettings(lengths=(500, 600), train_samples=9, validation_samples=4, test_samples=5)
    files = write_questions(of, data, Words(), 1, tmp_path / "questions")
    assert sorted(path.name for path in files) == sorted(
        f"factsqa_{length}{name}.parquet" for length in (500, 600) for name in ("", "_train", "_validation")
    )
    sets = {
        name: passages(tmp_path / "questions" / f"factsqa_600{name}.parquet") for name in ("", "_train", "_validation")
    }
    assert [len(load_prompts(tmp_path / "questions" / f"factsqa_600{name}.parquet")) for name in sets] == [5, 9, 4]
    assert (
        not sets[""] & sets["_train"]
        and not sets[""] & sets["_validation"]
        and not sets["_train"] & sets["_validation"]
    )
    assert all(any("the king number" in passage for passage in found) for found in sets.values())
    again = write_questions(of, data, Words(), 1, tmp_path / "again")
    assert [path.read_bytes() for path in files] == [path.read_bytes() for path in again]


def test_squad_s_training_file_loses_what_the_test_file_has(data, tmp_path):
    def squad(towns: range) -> str:
        articles = [
            {
                "title": f"town {t}",
                "paragraphs": [
                    {
                        "context": f"In year {p} King {t}x{p} ruled town {t}.",
                        "qas": [
                            {
                                "id": f"{t}-{p}",
                                "question": f"Who ruled town {t} in {p}?",
                                "is_impossible": False,
                                "answers": [{"text": f"King {t}x{p}", "answer_start": 0}],
                            }
                        ],
                    }
                    for p in range(3)
                ],
            }
            for t in towns
        ]
        return json.dumps({"data": articles})

    (tmp_path / "train.json").write_text(squad(range(12)))
    (tmp_path / "dev.json").write_text(squad(range(9, 14)))
    of = QuestionsSettings(
        source="squad",
        train=str(tmp_path / "train.json"),
        test=str(tmp_path / "dev.json"),
        lengths=(200,),
        train_samples=20,
        validation_samples=2,
        test_samples=15,
    )
    write_questions(of, data, Words(), 1, tmp_path / "q")
    train, test = (passages(tmp_path / "q" / f"ruler_squadqa_200{name}.parquet") for name in ("_train", ""))
    assert len(test) == 15 and not train & test
    with pytest.raises(DataError, match="30 questions asked for; of 21,"):
        write_questions(of.model_copy(update={"train_samples": 30}), data, Words(), 1, tmp_path / "more")
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": "facts", "train": "x.json"}, "questions.train is given, but source 'facts' makes its own"),
        ({"source": "squad", "train": "x.json"}, "source 'squad' needs questions.train and questions.test"),
        ({"lengths": [512, 512]}, "lengths are positive and differ, not 512, 512"),
        ({"source": "sqad"}, "'facts', 'squad' or 'hotpotqa'"),
    ],
)
def test_settings_at_odds_are_refused(values, message):
    with pytest.raises(SettingError, match=message):
        validated(QuestionsSettings, values)
