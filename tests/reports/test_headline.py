"""The headline columns follow from the metrics that exist, whatever the tasks and lengths are; at most six."""

from __future__ import annotations

import pytest

from refine.reports.headline import MOST, columns, headline, values_of


def score(task: str, *lengths: int) -> list[str]:
    return [f"eval/{task}/{length}/score" for length in lengths]


S1, S2 = score("niah_single_1", 1024, 2048, 4096), score("niah_single_2", 1024, 2048, 4096)
QUESTIONS = score("factsqa", 512)
LOSSES = ["second_domain/loss", "val/loss"]


@pytest.mark.parametrize(
    ("metrics", "titles"),
    [
        (
            [*LOSSES, "val/accuracy", *S1, *S2, *QUESTIONS, "eval/factsqa/512/log_prob", "train/loss/x"],
            ["val loss", "second domain loss", "single_1 4096 %", "single_2 4096 %", "needles mean %", "FactsQA 512 %"],
        ),
        (
            [*LOSSES, *S1, *S2, *score("niah_multikey_1", 1024, 4096), *QUESTIONS],
            ["val loss", "second domain loss", "single 4096 %", "multikey_1 4096 %", "needles mean %", "FactsQA 512 %"],
        ),
        (
            [
                *LOSSES, *S1, *S2, *QUESTIONS, *score("niah_multikey_1", 64), *score("niah_multivalue", 64),
                *score("niah_multiquery", 64),
            ],
            ["val loss", "second domain loss", "needles mean %", "FactsQA 512 %"],
        ),
        (
            ["recall/loss", "recall/marked_loss", *LOSSES, *S1, *S2, *QUESTIONS],
            [
                "val loss", "recall marked loss", "single_1 4096 %", "single_2 4096 %", "needles mean %",
                "FactsQA 512 %",
            ],
        ),
        (score("niah_single_2", 256), ["single_2 256 %"]),
        (score("niah_single_2", 256, 512), ["single_2 512 %", "needles mean %"]),
        (score("ruler_squadqa", 512) + QUESTIONS, ["questions 512 %"]),
        (["eval/piqa/acc/score", "val/loss"], ["val loss", "piqa acc %"]),
        (["val/reward/cosine/mean"], []),
    ],
)  # fmt: skip
def test_columns_follow_from_the_metrics(metrics, titles):
    assert [" ".join(one.title.split()) for one in columns(metrics)] == titles


def test_there_are_never_more_than_fit():
    many = [f"eval/task{n}/acc/score" for n in range(20)]
    assert len(columns([*LOSSES, *S1, *S2, *QUESTIONS, *score("qasper", 4096, 8192), *many])) == MOST


def test_means_have_a_name_of_their_own_and_their_scale(experiment_arms):
    made = headline(experiment_arms)
    names = [one.name for one in made.columns]
    assert names[-2:] == ["mean/needles/score", "eval/factsqa/512/score"] and len(set(names)) == len(names)
    assert [one.scale for one in made.columns] == [1.0, 1.0, 100.0, 100.0, 100.0, 100.0]
    assert [one.less_is_better for one in made.columns[:3]] == [True, True, False]


def test_each_value_has_the_name_of_its_arm_and_metric(experiment_arms):
    made = headline(experiment_arms)
    found = values_of(made)
    assert len(found) == sum(cell.estimate is not None for row in made.rows for cell in row.cells)
    row, column = made.rows[0], made.columns[0]
    assert found[f"{row.phase}-{row.arm}/{column.name}"] == row.cells[0].estimate.value
