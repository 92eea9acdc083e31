"""`refine evaluate` and `refine report`: what they write, record and refuse."""

from __future__ import annotations

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

import refine.models
from refine.cli.evaluate import evaluate
from refine.cli.report import report
from refine.data.prompts.prompt import Prompt, write_prompts
from refine.data.tokenizer import train_tokenizer
from refine.errors import RefineError
from refine.evaluation import Evaluation

TEXT = "The grass is green. The sky is blue. It rained on the harbour, and the men waited for the ships. " * 9


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny random model with its tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = train_tokenizer([TEXT], 280)
    torch.manual_seed(0)
    fields = {"model_type": "delta_net", "hidden_size": 32, "num_hidden_layers": 1, "num_heads": 2, "vocab_size": 280}
    refine.models.from_config(fields).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def blank_database(tmp_path_factory):
    """An MLflow database with its tables made, to copy: making them takes seconds."""
    from refine.tracking.connection import connect

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    connect(f"sqlite:///{file}")
    return file


@pytest.fixture
def mlflow_home(prepared, blank_database, monkeypatch):
    """$REFINE_HOME in the working directory, with an empty MLflow database."""
    monkeypatch.setenv("REFINE_HOME", str(prepared))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(blank_database, prepared / "mlflow.db")
    return prepared


@pytest.fixture
def prepared(tmp_path, checkpoint, monkeypatch):
    """A working directory with prepared/ and data/."""
    monkeypatch.chdir(tmp_path)
    sequence = {"tokens": list(range(2, 40)), "document": "a", "offset": 0}
    (tmp_path / "prepared" / "documents").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([sequence] * 3), tmp_path / "prepared" / "documents" / "validation.parquet")
    write_prompts([Prompt("Who?", ("Ann",), "factsqa", 64, 4)] * 5, tmp_path / "prepared" / "questions" / "q.parquet")
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"text": [TEXT]}), tmp_path / "data" / "validation.parquet")
    return tmp_path


def run(command, *arguments: object):
    return CliRunner().invoke(command, [str(one) for one in arguments], catch_exceptions=False)


def test_everything_in_prepared_is_scored_into_one_folder(prepared, checkpoint):
    ran = run(evaluate, checkpoint, "--output", "out", "--samples", 4)
    assert sorted(path.name for path in (prepared / "out").iterdir()) == [
        "answers.jsonl", "evaluation.json", "scores.png", "table.md",
    ]  # fmt: skip
    found = Evaluation.load(prepared / "out")
    assert list(found.next_token) == ["val"] and [(task.task, len(task.scores)) for task in found.tasks] == [
        ("factsqa", 4)
    ]
    assert found.table() in ran.output and "written: out/evaluation.json" in ran.output
    assert len((prepared / "out" / "answers.jsonl").read_text().splitlines()) == 4


def test_needles_of_lengths_that_are_not_prepared_are_made_from_the_validation_text(prepared, checkpoint):
    run(
        evaluate,
        checkpoint,
        "--tasks",
        "niah_single_2,next_token",
        "--lengths",
        "700,800",
        "--samples",
        2,
        "--output",
        "out",
    )
    found = Evaluation.load(prepared / "out")
    assert [(task.task, task.length, task.score.samples) for task in found.tasks] == [
        ("niah_single_2", 700, 2),
        ("niah_single_2", 800, 2),
    ]
    assert set(found.next_token) == {"val"}


def test_a_model_folder_is_evaluated_into_results_by_its_name(prepared, checkpoint):
    run(evaluate, checkpoint, "--tasks", "factsqa")
    [folder] = (prepared / "results" / "evaluation").iterdir()
    assert folder.name == str(checkpoint).strip("/").replace("/", "_")


def test_a_registered_version_is_fetched_and_gets_its_scores(mlflow_home, checkpoint):
    from refine.tracking.champion import crown
    from refine.tracking.connection import connect, experiment_id
    from refine.tracking.registry import register, versions
    from refine.tracking.run import open_run

    client = connect()
    experiment = experiment_id(client, "sample")
    with open_run(client, experiment, "sft") as opened:
        version = register(client, "sample", checkpoint, key="k", run_id=opened.run_id, experiment_id=experiment,
                           metrics={"val/loss": 9.0}, settings={}, tags={"arm": "sft"})  # fmt: skip
    crown(client, version, "the only one")
    ran = run(evaluate, "models:/sample@champion", "--tasks", "questions")
    assert "recorded on sample version 1 (sft)" in ran.output
    [version] = versions(client, "sample")
    found = Evaluation.load(mlflow_home / "results" / "evaluation" / "sample_champion")
    assert version.metrics == {"val/loss": 9.0} and version.extra == found.metrics()
    assert version.evaluation == "", "a part of the data is not what the version is compared by"


def test_all_of_the_data_is_what_a_version_without_scores_is_compared_by(mlflow_home, checkpoint):
    from refine.tracking.connection import connect, experiment_id
    from refine.tracking.registry import register, version_of

    client = connect()
    run_id = client.create_run(experiment_id(client, "sample")).info.run_id
    register(client, "sample", checkpoint, key="k", run_id=run_id, experiment_id="1", metrics={"val/entropy": 2.0},
             settings={}, tags={"experiment": "sample", "arm": "sft"})  # fmt: skip
    ran = run(evaluate, "models:/sample/latest")
    assert "recorded on sample version 1 (sft), as the scores that it is compared by" in ran.output
    version = version_of(client, "sample", "1")
    found = Evaluation.load(mlflow_home / "results" / "evaluation" / "sample_latest")
    assert version.metrics == {"val/entropy": 2.0, **found.metrics()} and not version.extra
    assert version.evaluation == found.settings["scored_on"]
    scored = client.get_run(version.tags["refine.evaluation_run"])
    assert scored.data.metrics.items() <= version.metrics.items() and scored.data.tags["refine.trained_by"] == run_id
    with pytest.raises(RefineError, match="--rescore takes a registered version"):
        run(evaluate, "models:/sample/1", "--rescore", "--samples", "2")


def test_lm_eval_s_tasks_alone_need_no_prepared_data(prepared, checkpoint):
    pytest.importorskip("lm_eval")
    (prepared / "own").mkdir()
    (prepared / "own" / "rows.jsonl").write_text('{"q": "The sky is", "a": ["blue", "green"], "label": 0}\n')
    (prepared / "own" / "sky.yaml").write_text(
        f"task: sky\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {prepared}/own/rows.jsonl}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{a}}'\n"
        "doc_to_target: label\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    run(
        evaluate,
        checkpoint,
        "--harness",
        "sky",
        "--harness-tasks",
        prepared / "own",
        "--output",
        "out",
        "--data",
        "none",
    )
    found = Evaluation.load(prepared / "out")
    assert not found.tasks and found.metrics()["eval/sky/acc/samples"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "factsq"], r"no task 'factsq' \(did you mean 'factsqa'\?\)"),
        (["--tasks", "niah_single_1", "--lengths", "90"], "niah_single_1 does not fit in 90 tokens"),
        (["--lengths", "long"], "--lengths long: expected lengths from 1 to 100000000 tokens"),
        (["--data", "nowhere"], "nowhere: holds nothing to evaluate on"),
        (["--tokenizer", "mistral_v1"], "the tokenizer has 32000 pieces and the model a vocabulary of 280"),
        (["--tasks", "niah_single_2", "--lengths", "700", "--essays", "missing"], "data set 'missing'"),
        (["--tasks", "qasper", "--lengths", "4096"], "holds no prompts of qasper at length 4096"),
    ],
)
def test_a_user_error_is_reported_before_the_model_is_loaded(arguments, message, prepared, checkpoint, monkeypatch):
    monkeypatch.setattr(refine.models, "from_pretrained", lambda *a, **k: pytest.fail("the model was loaded"))
    with pytest.raises(RefineError, match=message) as refused:
        run(evaluate, checkpoint, *arguments)
    assert "\n" not in str(refused.value)
    assert not (prepared / "results").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_the_model_is_loaded(prepared, checkpoint, monkeypatch):
    monkeypatch.setattr(refine.models, "from_pretrained", lambda *a, **k: pytest.fail("the model was loaded"))
    (prepared / "taken").write_text("a file")
    with pytest.raises(RefineError, match="taken/out: cannot be written to"):
        run(evaluate, checkpoint, "--output", "taken/out")


def test_adapting_to_each_prompt_takes_the_settings_and_reports_its_time(prepared, checkpoint, checkout):
    with pytest.raises(RefineError, match=r"training\.test_time is null"):
        values = (checkout / "params.yaml").read_text().split("\n  test_time:")[0]
        rest = (checkout / "params.yaml").read_text().split("\nevaluation:")[1]
        (prepared / "params.yaml").write_text(f"{values}\n  test_time: null\nevaluation:{rest}")
        run(evaluate, checkpoint, "--test-time", "sft")
    given = ["--test-time", "refine", "--params", checkout / "params.yaml", "--samples", 2, "--output", "out"]
    ran = run(evaluate, checkpoint, *given)
    found, before = Evaluation.load(prepared / "out"), Evaluation.load(prepared / "out" / "before")
    for line in ("score, before adapting", "score, adapted", "adapting to a prompt [s]"):
        assert f"| factsqa at 64: {line} |" in ran.output
    run(evaluate, checkpoint, "--tasks", "factsqa", "--samples", 2, "--output", "plain")
    assert before.metrics() == Evaluation.load(prepared / "plain").metrics()
    assert found.metrics()["eval/factsqa/64/adapt_seconds"] > 0 and not found.next_token


def test_a_missing_checkpoint_or_version_is_one_line(mlflow_home):
    with pytest.raises(RefineError, match="none"):
        run(evaluate, "none")
    with pytest.raises(RefineError, match="no registered model 'none'"):
        run(evaluate, "models:/none@champion")


def test_a_report_is_written_from_what_mlflow_holds(mlflow_home, checkpoint):
    from refine.tracking.connection import connect, experiment_id
    from refine.tracking.run import open_run

    run(evaluate, checkpoint, "--tasks", "factsqa,next_token", "--output", "out")
    client = connect()
    experiment = experiment_id(client, "sample")
    for arm in ("sft", "refine"):
        tags = {"arm": arm, "identity.seed": 1}
        with open_run(client, experiment, arm, tags={**tags, "phase": "mid"}) as trained:
            pass
        with open_run(
            client, experiment, arm, tags={**tags, "phase": "evaluation", "refine.trained_by": trained.run_id}
        ) as scored:
            client.log_artifact(scored.run_id, str(mlflow_home / "out" / "evaluation.json"))
    ran = run(report, "--experiment", "sample", "--output", "report")
    assert sorted(path.name for path in (mlflow_home / "report").iterdir()) == ["report.csv", "report.md", "report.png"]
    text = (mlflow_home / "report" / "report.md").read_text()
    assert "mid-training: REFINE" in text and "report/report.md" in ran.output.replace("\n", "")
    assert "mid-training: REFINE" not in ran.output, "the whole report was printed"
    assert ["refine", "–"] not in [line.split() for line in ran.output.splitlines()] and "  sft" in ran.output
    assert max(map(len, ran.output.splitlines()[:-1])) <= 80
    value = json.loads((mlflow_home / "out" / "evaluation.json").read_text())["metrics"]["val/loss"]
    assert f"{value:.4f}" in text
