"""supervisord.conf as `refine up` writes it; tests/services/test_up.py runs it."""

from __future__ import annotations

import configparser

import pytest

from refine.errors import SettingError
from refine.services.supervisord_conf import PROGRAMS, UpOptions, render
from refine.system.local_services import services_folder

STRANGE = "my home [1] 100% #x ;y ü it's"


def as_supervisord_reads(text):
    """supervisord's options from this text in its place, and the programs by name."""
    from supervisor.options import ServerOptions

    folder = services_folder()
    folder.mkdir(exist_ok=True)
    (folder / "supervisord.conf").write_text(text, encoding="utf-8")
    options = ServerOptions()
    options.realize(["-c", str(folder / "supervisord.conf")])
    read = options.configroot.supervisord
    return read, {one.name: one.process_configs[0] for one in read.process_group_configs}


def test_a_password_with_special_characters_survives_and_is_in_no_command(home):
    url = 'postgresql+pg8000://me:50%25"off# ;x\\@db/mlflow'
    _, programs = as_supervisord_reads(render(UpOptions(mlflow_database=url), home / "socket"))
    assert set(PROGRAMS) == set(programs)
    assert programs["mlflow"].environment["MLFLOW_BACKEND_STORE_URI"] == url and url not in programs["mlflow"].command


@pytest.mark.parametrize("value", ["a'b\"c", "'a", 'a"'])
def test_a_value_that_supervisord_cannot_take_is_refused(value, home, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", value)
    with pytest.raises(SettingError, match="MLFLOW_HTTP_REQUEST_TIMEOUT: supervisord cannot take"):
        render(UpOptions(), home / "socket")


def test_a_home_and_a_checkout_with_special_characters_reach_the_programs(tmp_path, monkeypatch):
    folder = tmp_path / STRANGE
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("REFINE_HOME", str(folder))
    read, programs = as_supervisord_reads(render(UpOptions(), folder / "socket"))
    assert read.logfile == str(folder / "services" / "supervisord.log") and read.server_configs[0]["file"].startswith(
        str(folder)
    )
    worker, mlflow = programs["worker"], programs["mlflow"]
    assert worker.directory == str(folder) == worker.environment["REFINE_HOME"] == worker.environment["REFINE_CHECKOUT"]
    assert worker.stdout_logfile == str(folder / "services" / "worker.log")
    assert mlflow.environment["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{folder}/mlflow.db"


def test_mlflow_accepts_other_host_names_only_with_another_host(home):
    options = UpOptions(host="trainer-1", mlflow_port=5001)
    read = configparser.RawConfigParser()
    read.read_string(render(options, home / "socket"))
    mlflow, prefect, worker = (read[f"program:{name}"] for name in ("mlflow", "prefect", "worker"))
    assert '"trainer-1" "5001"' in mlflow["command"] and '"trainer-1" "4200"' in prefect["command"]
    assert 'MLFLOW_SERVER_CORS_ALLOWED_ORIGINS="http://trainer-1:5001"' in mlflow["environment"]
    assert "trainer-1,trainer-1:*" in mlflow["environment"]
    assert 'MLFLOW_TRACKING_URI="http://trainer-1:5001"' in worker["environment"]
    alone = render(UpOptions(), home / "socket")
    assert "MLFLOW_SERVER_ALLOWED" not in alone and "MLFLOW_SERVER_CORS" not in alone and '"127.0.0.1"' in alone


def test_mlflows_server_runs_no_jobs_and_has_no_assistant(home):
    """Both take requests from every user of the machine."""
    _, programs = as_supervisord_reads(render(UpOptions(), home / "socket"))
    assert programs["mlflow"].environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert "refine.services.mlflow_server" in programs["mlflow"].command


def test_notifications_link_to_the_pages_of_this_server(home):
    _, programs = as_supervisord_reads(render(UpOptions(prefect_port=4300), home / "socket"))
    assert programs["prefect"].environment["PREFECT_UI_URL"] == "http://127.0.0.1:4300"
