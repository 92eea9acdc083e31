"""The flow's request to the evaluation process. tests/flows/test_tasks.py covers what the flow does with the scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from refine.evaluation.record import EVALUATION_FILE
from refine.phases import evaluation
from refine.phases.evaluation import ModelRequest, Request
from refine.settings.training import TestTimeSettings


@pytest.fixture
def request_of(tmp_path):
    """A request for models, named by their output folders."""

    def build(*names: str) -> Request:
        models = tuple(ModelRequest(name=name, model="hub/model", output=tmp_path / name) for name in names)
        test_time = TestTimeSettings(learning_rate=1e-3, steps=2)
        return Request(data=Path("prepared"), batch_size=4, seed=7, test_time=test_time, models=models)

    return build


def test_the_process_reads_the_request_that_the_flow_wrote(request_of, tmp_path):
    request = request_of("a", "b")
    file = request.write(tmp_path / "request.json")
    assert Request.model_validate_json(file.read_text()) == request


def test_a_retry_skips_models_that_have_scores(request_of, tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / EVALUATION_FILE).write_text("{}")
    monkeypatch.setattr(evaluation, "_evaluate", lambda *_: pytest.fail("evaluated again"))
    monkeypatch.setattr("refine.system.processes.die_with_parent", lambda: None)
    evaluation.main(request_of("a", "b").write(tmp_path / "request.json"))


@pytest.mark.parametrize("arm", ["sft", "refine"])
def test_an_arm_of_test_time_training_becomes_the_adapter(request_of, arm):
    request = request_of("a")
    adapter = evaluation._adapter(arm, request, None)
    assert adapter.settings == request.test_time and adapter.seed == 7
    assert evaluation._adapter("", request, None) is None
