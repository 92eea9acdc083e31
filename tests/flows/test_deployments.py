"""Every deployment on Prefect's pages is complete, and refuses bad parameters before it starts anything."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from flows import phases, sweep
from refine.data.corpus import dvc_stages
from refine.errors import DataError, SettingError
from refine.settings import load


@pytest.fixture(scope="module")
def deployments(checkout: Path) -> list[dict]:
    return yaml.safe_load((checkout / "flows" / "prefect.yaml").read_text())["deployments"]


def test_every_deployment_runs_a_flow_that_takes_its_parameters(deployments, checkout):
    assert len({one["name"] for one in deployments}) == len(deployments) == 10
    for one in deployments:
        file, _, name = one["entrypoint"].partition(":")
        flow = getattr(importlib.import_module(file.removesuffix(".py").replace("/", ".")), name)
        flow.validate_parameters(one.get("parameters", {}))
        described = flow.parameters.properties
        assert all(values.get("description") for values in described.values()), f"{name}: a parameter says nothing"


def test_the_shipped_sweeps_have_settings_that_hold(deployments, checkout):
    sweeps = [one["parameters"] for one in deployments if "sweep" in one["entrypoint"]]
    assert {tuple(one["settings"]) for one in sweeps} == {
        ("training.mid.objective.rollout_length",), ("training.mid.objective.positions",),
        ("training.mid.objective.reward",), ("training.mid.objective.selection",),
    }  # fmt: skip
    for one in sweeps:
        for overrides in sweep.combinations(one["settings"], [1]):
            load(checkout / "params.yaml", tuple(overrides))


def test_a_sweep_is_every_combination_in_every_seed():
    found = sweep.combinations({"a.b": [1, 2], "a.c": ["x"]}, [7, 8])
    assert found == [
        ["a.b=1", 'a.c="x"', "seed=7"], ["a.b=1", 'a.c="x"', "seed=8"],
        ["a.b=2", 'a.c="x"', "seed=7"], ["a.b=2", 'a.c="x"', "seed=8"],
    ]  # fmt: skip
    assert len(sweep.combinations({"a.b": [[1, 2], None]}, [1])) == 2
    for settings, seeds in (({"a.b": []}, [1]), ({"a.b": 3}, [1]), ({"a.b": [1]}, [])):
        with pytest.raises(SettingError, match="sweep"):
            sweep.combinations(settings, seeds)


def test_runs_of_a_sweep_have_different_names():
    from flows.run_names import name_with_overrides

    wanted = sweep.combinations({"training.mid.objective.reward": ["hybrid", "binary"]}, [3])
    names = [name_with_overrides("reward", overrides) for overrides in wanted]
    assert names == ["mid.objective.reward=hybrid, seed=3: reward", "mid.objective.reward=binary, seed=3: reward"]
    assert name_with_overrides("nightly", None) == name_with_overrides("nightly", []) == "nightly"


def test_a_sweep_ends_with_its_combinations_side_by_side(workplace, settings_with, monkeypatch):
    import prefect.artifacts

    from refine.tracking.connection import connect, experiment_id
    from refine.tracking.registry import register

    client, folder = connect(), workplace / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for reward, name in (("cosine", "tiny"), ("binary", "tiny"), ("hybrid", "other")):
        into = experiment_id(client, name)
        register(
            client, "refine-sample", folder, key=reward, run_id=client.create_run(into).info.run_id,
            experiment_id=into, metrics={"val/loss": 3.5}, settings={"objective.reward": reward},
            tags={"experiment": name, "phase": "mid", "arm": "refine"},
        )  # fmt: skip
    shown = []
    monkeypatch.setattr(prefect.artifacts, "create_markdown_artifact", lambda text, **more: shown.append(text))
    assert sweep._compare("tiny", settings_with()) == [1, 2]
    assert "objective.reward" in shown[0] and "cosine" in shown[0] and "binary" in shown[0] and "hybrid" not in shown[0]


def test_a_sweep_outlasts_a_server_that_is_away_and_a_run_that_is_deleted(monkeypatch):
    import httpx
    import prefect.client.orchestration
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Completed, Failed, Running

    answers = {
        "a": [httpx.ConnectError("away"), Running(), Completed()],
        "b": [Running(), httpx.ReadTimeout("slow"), Failed()],
        "c": [ObjectNotFound(None)],
    }

    class Client:
        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *error: None  # noqa: E731

        def read_flow_run(self, run_id: str):
            answer = answers[run_id].pop(0)
            if isinstance(answer, Exception):
                raise answer
            return SimpleNamespace(state=answer)

    monkeypatch.setattr(prefect.client.orchestration, "get_client", lambda sync_client: Client())
    monkeypatch.setattr(sweep, "EVERY", 0.0)
    found = sweep._wait([("steps=1", "a"), ("steps=2", "b"), ("steps=3", "c")])
    assert found == {"steps=1": "COMPLETED", "steps=2": "FAILED", "steps=3": "DELETED"}
    assert not any(answers.values()), "a run was asked for again after its end, or not until it"


@pytest.mark.parametrize(
    ("phase", "arm", "model", "message"),
    [
        ("mid", "nested_sft", "folder", "phase mid has no arm 'nested_sft'"),
        ("post", "nested_refin", "folder", "did you mean 'nested_refine'"),
        ("mid", "sft", None, "phase mid starts from a model"),
        ("start", None, "folder", "phase start trains a new model"),
    ],
)
def test_a_phase_without_what_it_needs_is_refused(phase, arm, model, message, checkout):
    settings = load(checkout / "params.yaml")
    with pytest.raises(SettingError, match=message):
        phases.check_arm(settings, phase, arm, model)
    assert phases.check_arm(settings, "mid", "refine_marked", "folder") == "refine_marked"
    assert phases.check_arm(settings, "start", None, None) == ""


def test_a_deployed_experiment_refuses_settings_of_other_data(workplace, monkeypatch):
    monkeypatch.delenv("DVC_STAGE", raising=False)
    other = load("params.yaml", ("documents.sequence_length=512",))
    with pytest.raises(SettingError, match=r"section 'documents' is overridden.*dvc exp run"):
        dvc_stages.prepare("params.yaml", other, print)
    with pytest.raises(DataError, match=r"no dvc\.yaml"):
        dvc_stages.prepare("params.yaml", load("params.yaml", ("training.mid.steps=3",)), print)
    monkeypatch.setenv("DVC_STAGE", "experiment")
    dvc_stages.prepare("params.yaml", other, print)  # DVC has prepared what it says


@pytest.mark.parametrize(
    "metric",
    [
        "val/loss",
        "second_domain/loss",
        "eval/niah_single_1/256/score",
        "val/reward/cosine/mean",
        "val/reward/cosine/q50",
    ],
)
def test_the_champions_metric_may_be_any_that_versions_will_have(metric, workplace, settings_with):
    from flows.preflight import check_metrics
    from refine.phases.prepared_data import Prepared

    goal = "minimise" if metric.endswith("loss") else "maximise"
    check_metrics(settings_with({"registry": {"metric": metric, "goal": goal}}), Prepared(workplace / "prepared"))
    other = settings_with({"registry": {"metric": f"{metric}s", "goal": goal}})
    with pytest.raises(SettingError, match=rf"registry\.metric: .*did you mean '{metric}'.*there will be .*val/loss"):
        check_metrics(other, Prepared(workplace / "prepared"))


def test_data_stages_that_fail_are_one_line(workplace, monkeypatch):
    monkeypatch.delenv("DVC_STAGE", raising=False)
    (workplace / "dvc.yaml").write_text("stages:\n  tokenizer: {cmd: 'false'}\n  experiment: {cmd: 'false'}\n")
    with pytest.raises(DataError, match="the data stages failed: ") as error:
        dvc_stages.prepare("params.yaml", load("params.yaml"), print)
    assert "\n" not in str(error.value)


def test_deployed_runs_in_one_checkout_do_not_write_over_each_others_results(workplace, monkeypatch):
    from flows.experiment import results_folder

    assert results_folder("a") == results_folder("b") == Path("results")
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "nightly")
    assert results_folder("a") != results_folder("b") and results_folder("a").is_relative_to(workplace / "home")


@pytest.mark.parametrize(
    "settings",
    [
        {"training.mid.objective.reward": ["hybrid"]},
        {"training.mid.learning_rate": [1e-4], "training.mid.arms": [["sft", "refine"]]},
        {"training.post": [None]},
    ],
    ids=["name", "number and list", "null"],
)
def test_a_sweep_by_prefect_and_one_by_dvc_make_the_same_stages(settings, workplace, settings_with):
    """The same settings give the same stage keys, so each kind of sweep reuses the stages of the other."""
    from dvc.utils.hydra import apply_overrides  # what `dvc exp run -S` does to params.yaml

    from refine.phases.prepared_data import Prepared
    from refine.phases.stages import Stages

    as_shipped = settings_with()
    (overrides,) = sweep.combinations(settings, [7])
    by_prefect = load("params.yaml", tuple(overrides))
    apply_overrides(workplace / "params.yaml", overrides)
    by_dvc = load("params.yaml", ())
    assert by_prefect == by_dvc != as_shipped
    first, second = (Stages(one, Prepared(workplace / "prepared")) for one in (by_prefect, by_dvc))
    start = first.start()
    assert start == second.start() and first.frozen() == second.frozen()
    assert first.mid("refine", "hub/model") == second.mid("refine", "hub/model")
