"""Every worker uses its own checkout; a folder that is no checkout is refused before a run starts."""

from __future__ import annotations

import os

import pytest
import yaml

from refine.errors import SettingError
from refine.services import checkout


@pytest.fixture
def project(tmp_path):
    """A folder that looks like the project's."""
    folder = tmp_path / "project"
    (folder / "flows").mkdir(parents=True)
    for name in ("params.yaml", "dvc.yaml"):
        (folder / name).touch()
    return folder


def test_the_workers_own_folder_goes_before_the_deployments(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(checkout.VARIABLE, str(project))
    assert checkout.enter("/nowhere") == {"directory": str(project)} and os.getcwd() == str(project)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(checkout.VARIABLE)
    assert checkout.enter(str(project)) == {"directory": str(project)} and os.getcwd() == str(project)


def test_a_folder_that_is_no_checkout_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv(checkout.VARIABLE, raising=False)
    with pytest.raises(SettingError, match=r"no params\.yaml, dvc\.yaml, flows.*REFINE_CHECKOUT.*--checkout") as error:
        checkout.enter(str(tmp_path))
    assert "\n" not in str(error.value)


def test_prefect_can_call_the_deployments_pull_step(project, tmp_path, monkeypatch, request):
    from prefect.utilities.importtools import import_object

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(checkout.VARIABLE, raising=False)
    text = (request.getfixturevalue("checkout") / "flows" / "prefect.yaml").read_text()
    ((name, inputs),) = (step for one in yaml.safe_load(text)["pull"] for step in one.items())
    assert inputs == {"default": "{{ $REFINE_CHECKOUT }}"}
    assert import_object(name)(default=str(project)) == {"directory": str(project)}
