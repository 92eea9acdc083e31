"""The long CSV keeps every value with its interval, count and difference, and is read back as the same table."""

from __future__ import annotations

import csv
import io

import pytest

from refine.errors import DataError
from refine.reports.arms_down import as_text
from refine.reports.experiment_files import everything
from refine.reports.long_csv import COLUMNS, as_csv, read


def test_each_metric_and_arm_has_a_line(experiment_arms):
    rows = list(csv.DictReader(io.StringIO(as_csv(everything(experiment_arms)))))
    [row] = [row for row in rows if (row["metric"], row["phase"], row["arm"]) == ("val/loss", "mid", "focus")]
    assert (row["version"], row["champion"], row["samples"], row["pairs"]) == ("4", "true", "12", "12")
    assert float(row["low"]) < float(row["value"]) < float(row["high"])
    assert float(row["difference_high"]) < 0 and row["clear_of_zero"] == "true"
    [row] = [row for row in rows if (row["metric"], row["arm"]) == ("val/loss", "none")]
    assert row["clear_of_zero"] == "true" and float(row["difference"]) > 0
    [mean] = [row for row in rows if (row["metric"], row["arm"]) == ("mean/needles/score", "none")]
    assert float(mean["value"]) == pytest.approx(0.1) and mean["samples"] == "80"
    adapted = [row for row in rows if row["phase"] == "test_time"]
    assert adapted and {row["version"] for row in adapted} == {""}


def test_what_was_written_is_read_again(experiment_arms, tmp_path):
    made = everything(experiment_arms)
    (tmp_path / "comparison.csv").write_text(as_csv(made))
    again = read(tmp_path / "comparison.csv")
    assert as_text(again) == as_text(made)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no experiment has finished here yet; run `make run`"),
        ("", "it has no lines"),
        (
            "metric,version,arm,value,low,high,samples,champion\nval/loss,1,sft,3,,,,false\n",
            "lacks the columns phase",
        ),
        (",".join(COLUMNS) + "\n" + "val/loss,1,sft,much" + "," * 9 + "\n", "not a comparison"),
        (",".join(COLUMNS) + "\nval/loss,1\n", "line 2 is cut off"),
    ],
)
def test_another_file_is_refused_in_one_line(text, message, tmp_path):
    path = tmp_path / "comparison.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=message) as refused:
        read(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)
