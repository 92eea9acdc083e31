"""What `refine up` recorded is read without errors, and only a living supervisor of this home counts."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from refine.system import local_services


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The services' folder of an empty $REFINE_HOME."""
    monkeypatch.setenv("REFINE_HOME", str(tmp_path))
    local_services.services_folder().mkdir()
    return local_services.services_folder()


def test_the_recorded_addresses_are_read(folder):
    (folder / "state.json").write_text('{"mlflow": "http://127.0.0.1:5000", "pool": "gpu"}')
    assert local_services.services_state() == {"mlflow": "http://127.0.0.1:5000", "pool": "gpu"}


@pytest.mark.parametrize("text", [None, "", "{", "5", "[]"])
def test_a_missing_or_damaged_record_is_empty(folder, text):
    if text is not None:
        (folder / "state.json").write_text(text)
    assert local_services.services_state() == {}


@pytest.mark.parametrize("text", [None, "", "no number", "999999999"])
def test_without_a_running_supervisor_there_is_no_process_id(folder, text):
    if text is not None:
        (folder / "supervisord.pid").write_text(text)
    assert local_services.supervisor_pid() is None and not local_services.supervisor_runs()


def test_another_process_with_the_recorded_id_is_not_the_supervisor(folder):
    (folder / "supervisord.pid").write_text(str(os.getpid()))
    assert local_services.supervisor_pid() is None


def test_a_process_with_this_homes_configuration_is_the_supervisor(folder):
    code = "import time; print(flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, str(local_services.configuration_file())]
    with psutil.Popen(command, stdout=subprocess.PIPE) as supervisor:
        supervisor.stdout.readline()  # before that the new process may still have the command line of this one
        (folder / "supervisord.pid").write_text(str(supervisor.pid))
        try:
            assert local_services.supervisor_pid() == supervisor.pid
        finally:
            supervisor.kill()
