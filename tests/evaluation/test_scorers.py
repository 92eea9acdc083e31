"""Scorers give what RULER and LongBench publish."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from refine.evaluation import scorers

# Mean score of each made-up answer over the rows of each published file, as LongBench's own scorers give it.
PUBLISHED = {
    "qasper": (1.0, 0.77293, 0.408695, 0.665636, 1.0, 0.060836, 0.515517, 0.0),
    "samsum": (1.0, 1.0, 0.64975, 0.694031, 0.67467, 0.077761, 0.000922, 0.0),
    "trec": (1.0, 1.0, 0.0, 0.0, 0.96, 0.005, 0.0, 0.0),
    "lcc": (0.991803, 0.993197, 0.660492, 0.739385, 0.652746, 0.263422, 0.473811, 0.0),
}
SCORERS = {
    "qasper": scorers.token_f1,
    "samsum": scorers.on_first_line(scorers.rouge_l),
    "trec": scorers.on_first_line(scorers.classification),
    "lcc": scorers.code_similarity,
}


def made_up_answers(right: str, prompt: str) -> list[str]:
    return [
        right,
        f"\n{right}\nQuestion: more",
        right[: len(right) // 2],
        f"I think the answer is: {right.lower()}.",
        " ".join(sorted(right.split())),
        prompt[-200:],
        f"# why\n`x`\n{right} // end\n{right.upper()}",
        "",
    ]


@pytest.mark.requires_shared
@pytest.mark.parametrize("task", PUBLISHED)
def test_scores_on_longbench_s_rows_are_the_published_scorers(task, shared_data):
    rows = pq.read_table(shared_data / "longbench" / f"{task}_16384.parquet").to_pylist()
    scores = [
        [SCORERS[task](answer, row["answers"]) for answer in made_up_answers(row["answers"][-1], row["prompt"])]
        for row in rows
    ]
    means = [sum(column) / len(rows) for column in zip(*scores, strict=True)]
    assert means == pytest.approx(PUBLISHED[task], abs=1e-6)


def test_ruler_s_needle_score_is_the_share_of_values_found_in_any_case():
    assert scorers.share_found(" 1234567, and 7654321.", ["1234567", "7654321", "1111111", "2222222"]) == 0.5
    assert scorers.share_found("ABCD-EF", ["abcd-ef"]) == 1.0


def test_ruler_s_question_score_is_one_if_any_accepted_answer_occurs():
    assert scorers.any_found("It was in the 11th Century, I think", ["early 11th century", "11th century"]) == 1.0
    assert scorers.any_found("the 12th century", ["early 11th century", "11th century"]) == 0.0


def test_an_answer_that_starts_with_newlines_is_scored_on_what_follows():
    assert scorers.any_found("\n\nParis\nQuestion: next", ["Paris"]) == 1.0
    assert scorers.first_line("\n\nParis\nQuestion: next") == "Paris"
    assert SCORERS["trec"]("\n Price\nQuestion: next\nType: Food", ["Price"]) == 1.0
    assert scorers.code_similarity("\nreturn x\nreturn y", ["return x"]) == 1.0


def test_token_f1_forgets_case_punctuation_and_articles_and_takes_the_best_accepted_answer():
    assert scorers.token_f1("The Cat!", ["dog", "cat"]) == 1.0
    assert scorers.token_f1("a black cat", ["cat"]) == pytest.approx(2 / 3)
    assert scorers.token_f1("the", ["cat"]) == 0.0


def test_an_answer_that_names_several_classes_shares_the_point():
    assert scorers.classification("Price or Food", ["Food"]) == 0.5
    assert scorers.classification("Price", ["Food"]) == 0.0


def test_the_published_removal_of_classes_inside_other_classes_never_applies():
    """LongBench drops a named class that is part of the right one; no class is, so that rule is left out."""
    classes = scorers.TREC_CLASSES
    assert len(set(classes)) == 50
    assert not [(a, b) for a in classes for b in classes if a != b and a in b]


def test_rouge_scores_nothing_but_punctuation_and_very_long_texts():
    assert scorers.rouge_l("...", ["Emilia is still angry."]) == 0.0
    long = " ".join(f"word{i}" for i in range(1500))
    assert scorers.rouge_l(long, [long]) == pytest.approx(1.0)
