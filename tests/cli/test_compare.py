"""`refine compare` prints the chosen versions, or lists those that exist."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from refine.cli.main import cli
from refine.errors import ServiceError, SettingError


@pytest.fixture(scope="module")
def registered(tmp_path_factory) -> Path:
    """A home with four versions of refine-sample from two experiments, and a champion."""
    from refine.tracking.champion import choose_champion
    from refine.tracking.connection import connect, experiment_id
    from refine.tracking.registry import register

    home = tmp_path_factory.mktemp("home")
    client = connect(f"sqlite:///{home}/mlflow.db")
    folder = home / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    made = []
    for n, (experiment, arm, loss) in enumerate(
        [("first", "sft", 3.6), ("first", "refine", 3.4), ("second", "sft", 3.6), ("second", "refine", 3.5)]
    ):
        run = client.create_run(experiment_id(client, experiment)).info
        made.append(
            register(
                client,
                "refine-sample",
                folder,
                key=str(n),
                run_id=run.run_id,
                experiment_id=run.experiment_id,
                metrics={"val/loss": loss, "val/sequences": 32},
                settings={"training.steps": 30 + n},
                tags={"experiment": experiment, "arm": arm, "phase": "mid"},
            )
        )
    choose_champion(client, "refine-sample", made, "val/loss", "minimise")
    return home


@pytest.fixture
def compare(registered, monkeypatch, checkout):
    """Run `refine compare` in the checkout on that home."""
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("REFINE_HOME", str(registered))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str):
        return CliRunner().invoke(cli, ["compare", *arguments])

    return run


def test_each_arms_newest_and_the_champion_stand_side_by_side(compare):
    result = compare()
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines())) <= 80
    shown = [line.split()[:3] for line in result.output.splitlines()]
    assert shown.index(["mid-training"]) < shown.index(["2", "refine", "3.400"]) < shown.index(["3", "sft", "3.600"])
    assert ["4", "refine", "3.500"] in shown and ["1", "sft", "3.600"] not in shown
    assert "1 older versions are not shown: --versions all" in result.output and "--all" in result.output
    assert "training.steps" not in result.output
    assert "champion: version 2 (mid refine), best val/loss" in result.output


def test_all_shows_what_differs_with_the_versions_that_have_it(compare):
    output = compare("--all", "--versions", "all").output
    assert ["training.steps", "30", "1"] in [line.split() for line in output.splitlines()]
    assert ["experiment", "first", "1,", "2"] in [line.split() for line in output.splitlines()]
    assert max(map(len, output.splitlines())) <= 80


def test_versions_and_experiments_can_be_named(compare):
    assert "1 sft" in compare("--versions", "all").output
    named = compare("--versions", "champion,1").output
    assert "1 sft" in named and "2 refine" in named and "4 refine" not in named
    second = compare("--experiment", "second").output
    assert "4 refine" in second and "2 refine" not in second


def test_markdown_and_csv_can_be_read_by_programs(compare):
    assert compare("--format", "markdown").output.startswith("| metric")
    assert compare("--format", "csv").output.splitlines()[1].split(",")[:4] == ["val/loss", "2", "refine", "3.4"]


def test_a_picture_is_drawn_if_its_name_has_the_ending_of_one(compare, tmp_path):
    drawn = compare("--format", "csv", "--picture", str(tmp_path / "arms.png"))
    assert drawn.exit_code == 0 and (tmp_path / "arms.png").read_bytes().startswith(b"\x89PNG")
    assert drawn.stdout.startswith("metric,version") and "arms.png" not in drawn.stdout
    refused = compare("--picture", str(tmp_path / "arms.txt"))
    assert isinstance(refused.exception, SettingError) and ".png, .svg, .pdf" in str(refused.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--experiment", "secnd"],
            "no version of refine-sample comes from experiment 'secnd' (did you mean 'second'?)",
        ),
        (["--versions", "9"], "refine-sample has no version or alias '9'; versions: 1, 2, 3, 4; aliases: champion"),
        (["--model", "refine"], "no registered model 'refine' (did you mean 'refine-sample'?)"),
    ],
)
def test_an_error_lists_the_experiments_versions_or_models_that_exist(compare, arguments, message):
    result = compare(*arguments)
    assert isinstance(result.exception, ServiceError) and message in str(result.exception)
