"""A version explains itself: scores, settings, identity; the champion is the best that can be compared."""

from __future__ import annotations

import pytest

from refine.errors import ServiceError
from refine.tracking.champion import choose_champion
from refine.tracking.references import parse_reference
from refine.tracking.registry import add_metrics, download, register, version_of, versions
from refine.tracking.run import open_run
from refine.tracking.tags import EVALUATION_RUN


@pytest.fixture
def make(client, experiment, model_folder):
    """Register a version: make(arm, loss, evaluation)."""

    def make(arm: str, loss: float | None, evaluation: str = "e1", key: str | None = None):
        with open_run(client, experiment, arm) as run:
            return register(
                client,
                "refine-sample",
                model_folder,
                key=key or f"{arm}{loss}{evaluation}",
                run_id=run.run_id,
                experiment_id=experiment,
                metrics={"val/accuracy": 0.3} | ({} if loss is None else {"val/loss": loss}),
                settings={"training.mid.steps": 30, "arm": arm},
                tags={"arm": arm, "experiment": "sample", "refine.evaluation": evaluation},
                headline=("val/loss",),
            )

    return make


def test_a_version_carries_model_metrics_settings_and_tags(client, make, model_folder):
    made = make("refine", 3.5)
    (version,) = versions(client, "refine-sample")
    assert version == made
    assert version.metrics == {"val/loss": 3.5, "val/accuracy": 0.3}
    assert version.settings["training.mid.steps"] == 30
    assert version.tags["val/loss"] == "3.5000" and version.label == "1 (refine)"
    assert list(version.tags)[:2] == ["arm", "val/loss"], "what tells versions apart comes first on MLflow's page"
    described = client.get_model_version("refine-sample", "1").description
    assert described == "refine of experiment sample: val/loss 3.5000"
    folder = download(client, "models:/refine-sample/1")
    assert (folder / "model.safetensors").read_bytes() == (model_folder / "model.safetensors").read_bytes()
    logged = client.search_logged_models([client.get_experiment_by_name("sample").experiment_id])
    assert {metric.key: metric.value for metric in logged[0].metrics} == version.metrics


def test_tags_of_scores_are_short_enough_for_mlflows_page(client, experiment, model_folder):
    run = client.create_run(experiment).info.run_id
    version = register(
        client,
        "m",
        model_folder,
        key="1",
        run_id=run,
        experiment_id=experiment,
        settings={},
        tags={"arm": "sft"},
        metrics={"eval/niah_single_1/1024/score": 0.5},
        headline=("eval/niah_single_1/1024/score",),
    )
    assert version.tags["niah_single_1/1024"] == "0.5000" and version.metrics == {"eval/niah_single_1/1024/score": 0.5}


def test_registering_again_makes_no_second_version(client, make):
    assert make("sft", 3.6, key="same").number == make("sft", 3.6, key="same").number
    assert len(versions(client, "refine-sample")) == 1


def test_the_best_becomes_champion_and_a_worse_one_later_does_not(client, make):
    first, second = make("sft", 3.6), make("refine", 3.5)
    best = choose_champion(client, "refine-sample", [first, second], "val/loss", "minimise")
    assert best.number == second.number and best.is_champion and "best val/loss" in best.tags["champion.why"]
    later = make("refine", 3.55)
    assert choose_champion(client, "refine-sample", [later], "val/loss", "minimise").number == second.number
    assert download(client, "models:/refine-sample@champion").name
    assert choose_champion(client, "refine-sample", [first, second], "val/loss", "maximise").number == first.number


def test_a_champion_of_other_data_is_no_rival(client, make):
    easy = make("refine", 1.0, evaluation="easy text")
    choose_champion(client, "refine-sample", [easy], "val/loss", "minimise")
    hard = make("refine", 3.0, evaluation="hard text")
    assert choose_champion(client, "refine-sample", [hard], "val/loss", "minimise").number == hard.number


def test_a_score_that_is_no_number_never_wins(client, make):
    broken, sound = make("sft", float("nan")), make("refine", 3.5)
    assert choose_champion(client, "refine-sample", [broken, sound], "val/loss", "maximise").number == sound.number


def test_a_metric_that_no_version_has_names_the_nearest(client, make):
    with pytest.raises(ServiceError, match=r"val/los'.*did you mean 'val/loss'"):
        choose_champion(client, "refine-sample", [make("sft", 3.6)], "val/los", "minimise")


def test_an_unknown_model_version_or_alias_names_what_there_is(client, make):
    with pytest.raises(ServiceError, match=r"no registered model 'refine'.*none"):
        version_of(client, "refine", "1")
    choose_champion(client, "refine-sample", [make("sft", 3.6)], "val/loss", "minimise")
    with pytest.raises(ServiceError, match=r"did you mean 'refine-sample'"):
        version_of(client, "refine-sampel", "1")
    with pytest.raises(ServiceError, match=r"no version or alias '7'; versions: 1; aliases: champion"):
        version_of(client, "refine-sample", "7")
    with pytest.raises(ServiceError, match=r"did you mean 'champion'"):
        download(client, "models:/refine-sample@champoin")
    with pytest.raises(ServiceError, match=r"expected models:/NAME@ALIAS"):
        parse_reference("models:/refine-sample")


def test_later_scores_join_those_a_version_has(client, make):
    version = add_metrics(client, make("sft", 3.6), {"eval/qasper/4096/score": 0.2})
    assert version.metrics == {"val/loss": 3.6, "val/accuracy": 0.3} and version.extra == {
        "eval/qasper/4096/score": 0.2
    }


def test_scores_from_fewer_samples_are_ignored(client, make):
    full = {"eval/qa/512/score": 0.2, "eval/qa/512/samples": 40.0}
    version = add_metrics(client, make("sft", 3.6), full)
    quick = {
        "eval/qa/512/score": 1.0,
        "eval/qa/512/samples": 4.0,
        "eval/qa/1024/score": 0.5,
        "eval/qa/1024/samples": 4.0,
    }
    version = add_metrics(client, version, quick)
    assert {**full, "eval/qa/1024/score": 0.5}.items() <= version.extra.items()
    again = {"eval/qa/512/score": 0.3, "eval/qa/512/samples": 40.0}
    assert add_metrics(client, version, again).extra["eval/qa/512/score"] == 0.3


def test_later_scores_are_not_in_the_training_s_curve(client, experiment, model_folder):
    trained, scored = (client.create_run(experiment).info.run_id for _ in range(2))
    client.log_metric(trained, "val/loss", 3.9, step=20)
    version = register(
        client,
        "refine-sample",
        model_folder,
        key="k",
        run_id=trained,
        scored_by=scored,
        experiment_id=experiment,
        metrics={"val/loss": 3.6},
        settings={},
        tags={EVALUATION_RUN: scored},
    )
    add_metrics(client, version, {"val/loss": 3.5})
    assert [point.value for point in client.get_metric_history(trained, "val/loss")] == [3.9]
    assert [point.value for point in client.get_metric_history(scored, "val/loss")] == [3.6, 3.5]


def test_a_folder_that_is_no_model_is_refused(client, experiment, tmp_path):
    with pytest.raises(ServiceError, match=r"no model folder"):
        register(
            client,
            "refine-sample",
            tmp_path,
            key="k",
            run_id="",
            experiment_id=experiment,
            metrics={},
            settings={},
            tags={},
        )
    assert versions(client, "refine-sample") == []
