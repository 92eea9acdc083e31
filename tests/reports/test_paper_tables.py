"""The paper's tables from an experiment's evaluations: layout, averages, the best, differences that hold.

Also of their columns (refine/reports/paper_columns.py) and files (refine/reports/paper_files.py).
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from refine.data.prompts.tasks import PAPER_LONGBENCH
from refine.errors import DataError
from refine.evaluation.answers import Answer
from refine.evaluation.record import Evaluated, Evaluation, NextTokenScore, PositionScore, TaskScore
from refine.reports.evaluations import find_in_folder
from refine.reports.paper_files import as_csv, as_markdown, write_report
from refine.reports.paper_tables import tables


def task(name: str, length: int, scores: list[float]) -> TaskScore:
    return TaskScore.of(name, length, scores, [Answer("", 1, 10, 0, -2.0 - score) for score in scores])


def evaluated(
    phase: str, arm: str, scores: dict[tuple[str, int], list[float]], seed: int = 1, scored_on: str = "x"
) -> Evaluated:
    tasks = tuple(task(name, length, values) for (name, length), values in scores.items())
    return Evaluated(phase, arm, seed, Evaluation(arm, {}, tasks, (), 1.0, {"scored_on": scored_on}))


def drawn(share: float, count: int = 40, seed: int = 0) -> list[float]:
    return (np.random.default_rng(seed).uniform(size=count) < share).astype(float).tolist()


@pytest.fixture
def experiment():
    """Three arms of mid-training and one of post-training."""
    names = [("niah_single_1", 512), ("niah_single_2", 512), ("niah_single_1", 1024), ("factsqa", 512)]
    arms = {("mid", "none"): 0.2, ("mid", "sft"): 0.3, ("mid", "refine"): 0.8, ("post", "nested_refine"): 0.5}
    return [
        evaluated(phase, arm, {name: drawn(share, seed=n) for n, name in enumerate(names)})
        for (phase, arm), share in arms.items()
    ]


def cells(table, label: str) -> dict:
    [row] = [row for row in table.rows if row.label == label]
    return {column.title: cell for column, cell in zip(table.columns, row.cells, strict=True)}


def test_needles_are_grouped_and_averaged_as_in_the_paper(experiment):
    table = tables(experiment)[0]
    assert [column.title for column in table.columns] == ["S 512", "S 1024", "S average"]
    found = cells(table, "mid-training: REFINE")
    at_512 = [task.scores for task in experiment[2].evaluation.tasks[:2]]
    assert found["S 512"].estimate.value == pytest.approx(np.mean(at_512)) and found["S 512"].estimate.samples == 80
    three = [task.score.value for task in experiment[2].evaluation.tasks[:3]]
    assert found["S average"].estimate.value == pytest.approx(np.mean(three))


def test_what_adapting_costs_stands_beside_the_scores_of_the_arms_that_adapt(experiment):
    key = ("factsqa", 512)
    arms = [evaluated("test_time", arm, {key: drawn(0.5)}) for arm in ("none", "sft", "refine")]
    costly = [
        replace(one, evaluation=replace(one.evaluation, tasks=(replace(one.evaluation.tasks[0], adapt_seconds=cost),)))
        for one, cost in zip(arms, (0.0, 0.5, 0.75), strict=True)
    ]
    (table,) = [table for table in tables([*experiment, *costly]) if "adapting" in table.title]
    assert {row.label: row.cells[0].estimate.value for row in table.rows} == {
        "test time: SFT": 0.5,
        "test time: REFINE": 0.75,
    }
    assert "0.500" in as_markdown([table], "costs")
    assert not [table for table in tables(experiment) if "adapting" in table.title]


def test_rows_come_in_the_paper_s_order_whatever_was_recorded_first(experiment):
    labels = [row.label for row in tables(experiment[::-1])[0].rows]
    assert labels == ["mid-training: none", "mid-training: SFT", "mid-training: REFINE", "post-training: nested REFINE"]


def test_the_best_is_marked_and_equals_all_are(experiment):
    marked = [row.label for row in tables(experiment)[0].rows if row.cells[2].best]
    assert marked == ["mid-training: REFINE"]
    same = [evaluated("mid", arm, {("factsqa", 64): [1.0, 0.0]}) for arm in ("none", "sft")]
    assert not any(cell.best for row in tables(same)[0].rows for cell in row.cells)


def test_differences_are_paired_with_the_phase_s_sft_arm_if_both_were_scored_on_the_same_inputs(experiment):
    table = tables(experiment)[0]
    refine = cells(table, "mid-training: REFINE")["S 512"]
    assert refine.difference.value == pytest.approx(
        refine.estimate.value - cells(table, "mid-training: SFT")["S 512"].estimate.value
    )
    assert refine.difference.clear_of_zero and refine.difference.low > 0
    assert cells(table, "mid-training: SFT")["S 512"].difference is None
    assert cells(table, "post-training: nested REFINE")["S 512"].difference is None  # its phase has no SFT arm
    scores = {("niah_single_1", 512): drawn(0.8), ("niah_single_2", 512): drawn(0.8)}
    other = [*experiment[:2], evaluated("mid", "refine", scores, scored_on="y")]
    assert cells(tables(other)[0], "mid-training: REFINE")["S 512"].difference is None


def test_equal_arms_have_a_difference_of_zero_that_is_not_marked_clear():
    same = [evaluated("mid", arm, {("factsqa", 64): drawn(0.5)}) for arm in ("sft", "refine")]
    cell = cells(tables(same)[0], "mid-training: REFINE")["FactsQA 64"]
    assert (cell.difference.value, cell.difference.low, cell.difference.high) == (
        0.0,
        0.0,
        0.0,
    ) and not cell.difference.clear_of_zero


def test_longbench_averages_the_paper_s_tasks_alone():
    names = [*PAPER_LONGBENCH, "musique", "gov_report"]
    one = evaluated("mid", "none", {(name, 16384): [n / 20, n / 10] for n, name in enumerate(names)})
    [table] = [table for table in tables([one]) if table.title.startswith("LongBench")]
    assert len(table.columns) == 15
    average = cells(table, "mid-training: none")["average of 12 at 16384"]
    assert average.estimate.value == pytest.approx(np.mean([1.5 * n / 20 for n in range(12)]))


def test_several_seeds_are_averaged_and_a_missing_task_leaves_a_gap(experiment):
    more = [
        *experiment,
        evaluated(
            "mid", "refine", {("niah_single_1", 512): drawn(0.6, seed=9), ("niah_single_2", 512): drawn(0.6)}, seed=2
        ),
    ]
    table = tables(more)[0]
    [row] = [row for row in table.rows if row.label == "mid-training: REFINE"]
    assert row.seeds == (1, 2)
    found = cells(table, "mid-training: REFINE")
    both = [
        np.mean(task.scores)
        for one in (more[2], more[4])
        for task in one.evaluation.tasks
        if task.length == 512 and "niah" in task.task
    ]
    assert found["S 512"].estimate.value == pytest.approx(np.mean(both))
    assert found["S 1024"].estimate is None  # seed 2 was not scored there


def test_evaluating_again_replaces_an_earlier_evaluation_of_the_seed():
    twice = [evaluated("mid", "sft", {("factsqa", 64): [value, value]}) for value in (0.0, 1.0)]
    assert cells(tables(twice)[0], "mid-training: SFT")["FactsQA 64"].estimate.value == 1.0


def test_markdown_has_bold_bests_intervals_counts_and_marked_differences(experiment):
    text = as_markdown(tables(experiment), "sample")
    assert text.startswith("# sample\n") and text.count("## ") == 3
    line = next(line for line in text.splitlines() if line.startswith("| mid-training: REFINE | **"))
    assert line.count("[") == 3
    assert "| samples | 80 | 40 | 120 |" in text
    change = [line for line in text.splitlines() if line.startswith("| mid-training: REFINE | +")]
    assert change and change[0].count(" *") >= 2


def test_csv_has_every_value_with_its_interval_and_difference(experiment):
    rows = list(csv.DictReader(io.StringIO(as_csv(tables(experiment)))))
    [row] = [row for row in rows if (row["arm"], row["column"]) == ("refine", "S average")]
    assert row["best"] == "true" and row["clear_of_zero"] == "true" and row["samples"] == "120"
    assert float(row["low"]) < float(row["value"]) < float(row["high"])
    assert float(row["difference_low"]) < float(row["difference"]) < float(row["difference_high"])


def test_the_report_s_files_are_written_and_no_others(experiment, tmp_path):
    files = write_report(tables(experiment), tmp_path / "report", "sample")
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == sorted(path.name for path in files)
    assert files[2].read_bytes().startswith(b"\x89PNG")


def test_nothing_to_report_and_seeds_of_unlike_samples_are_refused():
    with pytest.raises(DataError, match="no evaluations to report on"):
        tables([])
    with pytest.raises(DataError, match="hold no scores"):
        tables([evaluated("mid", "none", {})])
    unlike = [evaluated("mid", "sft", {("factsqa", 64): [1.0] * n}, seed=n) for n in (3, 4)]
    with pytest.raises(DataError, match="different numbers of samples"):
        tables(unlike)


def test_a_folder_of_evaluations_is_a_report_too_with_arms_of_any_name_and_their_seeds(tmp_path):
    for seed in (1, 2):
        for arm, share in (("sft", 0.2), ("c=8 n=8", 0.9)):
            scores = {("niah_single_1", 512): drawn(share, seed=seed)}
            evaluated("mid", arm, scores, seed).evaluation.save(tmp_path / arm / str(seed))
    (tmp_path / "sft" / "1" / "run").mkdir()
    (tmp_path / "sft" / "1" / "run" / "evaluation.json").write_text("another's, one folder further down")
    found = find_in_folder(tmp_path)
    assert {(one.phase, one.arm, one.seed) for one in found} == {
        ("mid", arm, seed) for arm in ("sft", "c=8 n=8") for seed in (1, 2)
    }
    cell = cells(tables(found)[0], "mid-training: c=8 n=8")["S 512"]
    assert cell.estimate.samples == 40 and cell.difference.clear_of_zero and cell.difference.value > 0.4
    with pytest.raises(DataError, match=r"no ARM/SEED/evaluation\.json"):
        find_in_folder(tmp_path / "sft")


def by_position(arm: str, losses: list[list[float]]) -> Evaluated:
    """losses: of each sequence, in positions 2-16 and 17-32."""
    bins = tuple(
        PositionScore(first, last, float(np.mean(column)), 0.1, 16 * len(column), None, tuple(column))
        for (first, last), column in zip([(2, 16), (17, 32)], np.array(losses).T.tolist(), strict=True)
    )
    means = [float(np.mean(row)) for row in losses]
    score = NextTokenScore(
        float(np.mean(means)), 0.1, 32, len(losses), bins, None, None, tuple(means), (31,) * len(losses)
    )
    return Evaluated("mid", arm, 1, Evaluation(arm, {"val": score}, (), (), 1.0, {"scored_on": "x"}))


def test_loss_by_position_is_a_table_with_paired_differences(tmp_path):
    sft = by_position("sft", [[5.0, 4.0], [5.2, 4.4], [4.8, 4.1]] * 4)
    refine = by_position("refine", [[5.0, 3.9], [5.2, 4.3], [4.8, 4.0]] * 4)
    refine.evaluation.save(tmp_path)  # as the report reads them
    refine = replace(refine, evaluation=Evaluation.load(tmp_path))
    [table] = [table for table in tables([sft, refine]) if "by position" in table.title]
    assert "val" in table.title and [column.title for column in table.columns] == ["2–16", "17–32"]
    found = cells(table, "mid-training: REFINE")
    assert found["17–32"].estimate.value == pytest.approx(12.2 / 3) and found["17–32"].best
    assert found["17–32"].difference.value == pytest.approx(-0.1) and found["17–32"].difference.clear_of_zero
    assert not found["2–16"].difference.clear_of_zero


def test_a_record_from_before_positions_had_sequences_is_still_read(tmp_path):
    one = by_position("sft", [[5.0, 4.0], [5.2, 4.4]])
    file = one.evaluation.save(tmp_path)
    values = json.loads(file.read_text(encoding="utf-8"))
    for score in values["next_token"]["val"]["by_position"]:
        del score["loss_interval"], score["sequence_losses"]
    file.write_text(json.dumps(values), encoding="utf-8")
    made = tables([replace(one, evaluation=Evaluation.load(tmp_path))])
    assert [table.title for table in made] == ["Next-token prediction on held-out documents [nats per token]"]
