"""`refine up` starts all or nothing, keeps it running, and leaves nothing behind, whoever is killed."""

from __future__ import annotations

import configparser
import os
import signal
import socket
import stat
import time

import psutil
import pytest
from click.testing import CliRunner

from refine.cli.main import cli
from refine.errors import ServiceError, SettingError
from refine.services import up
from refine.services.prefect_api import answers, running_server
from refine.system.local_services import state_file


def wait_for(condition, seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.2)
    return False


def family() -> list[psutil.Process]:
    """The supervisor and everything below it."""
    pid = up.supervisor_pid()
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)] if pid else []


def test_a_port_that_is_taken_is_named_before_anything_starts(home):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ServiceError, match=rf"port {port} is taken.*--prefect-port") as error:
            up.up(up.Wanted(prefect_port=port))
    assert "\n" not in str(error.value) and not up.supervisor_runs() and not state_file().exists()


def test_ports_that_are_none_or_the_same_are_refused(home):
    with pytest.raises(SettingError, match="--prefect-port and --mlflow-port are both 4300"):
        up.up(up.Wanted(prefect_port=4300, mlflow_port=4300))
    told = CliRunner().invoke(cli, ["up", "--prefect-port", "99999"])
    assert told.exit_code == 2 and "99999 is not in the range 1<=x<=65535" in told.output
    assert not up.supervisor_runs()


def test_a_home_that_cannot_be_written_to_is_named(monkeypatch):
    monkeypatch.setenv("REFINE_HOME", "/proc/home")
    with pytest.raises(ServiceError, match=r"cannot write to /proc/home.*REFINE_HOME"):
        up.up(up.Wanted())


def test_passwords_with_signs_survive_the_configuration_and_stay_private(home):
    url = 'postgresql+pg8000://me:50%25"off@db/mlflow'
    wanted = up.Wanted(mlflow_database=url)
    text = up.configuration(wanted, home / "socket")
    read = configparser.RawConfigParser()
    read.read_string(text)
    assert {f"program:{name}" for name in up.PROGRAMS} <= set(read.sections())
    assert '50%%25\\"off' in read["program:mlflow"]["environment"] and url not in read["program:mlflow"]["command"]
    up._write_private(home / "services" / "supervisord.conf", text)
    assert stat.S_IMODE((home / "services" / "supervisord.conf").stat().st_mode) == 0o600


def test_servers_for_others_are_told_which_name_they_go_by(home):
    wanted = up.Wanted(host="trainer-1", mlflow_port=5001)
    read = configparser.RawConfigParser()
    read.read_string(up.configuration(wanted, home / "socket"))
    mlflow, prefect, worker = (read[f"program:{name}"] for name in ("mlflow", "prefect", "worker"))
    assert '"--host" "trainer-1"' in mlflow["command"] and '"--host" "trainer-1"' in prefect["command"]
    assert 'MLFLOW_SERVER_CORS_ALLOWED_ORIGINS="http://trainer-1:5001"' in mlflow["environment"]
    assert "trainer-1,trainer-1:*" in mlflow["environment"]
    assert 'MLFLOW_TRACKING_URI="http://trainer-1:5001"' in worker["environment"]
    alone = up.configuration(up.Wanted(), home / "socket")
    assert "ALLOWED" not in alone and '"127.0.0.1"' in alone


def test_an_address_of_another_machine_is_named_before_anything_starts(home):
    with pytest.raises(ServiceError, match=r"--host 203\.0\.113\.1: .*name an address of this machine"):
        up.up(up.Wanted(host="203.0.113.1"))
    assert not up.supervisor_runs()


def test_without_services_status_and_down_say_so(home):
    status = CliRunner().invoke(cli, ["status"])
    assert status.exit_code == 0 and "do not run" in status.output and "no run goes on" in status.output
    assert CliRunner().invoke(cli, ["down"]).output == "nothing runs\n"


def test_a_process_id_that_another_process_has_now_is_not_taken_for_the_supervisor(home):
    (home / "services").mkdir()
    (home / "services" / "supervisord.pid").write_text(str(os.getpid()))
    assert up.supervisor_pid() is None and not up.down()


@pytest.mark.slow
def test_what_dies_comes_back_and_down_ends_all(services):
    assert running_server() == services["prefect_api"] and answers(services["prefect_api"])
    assert {one.name: one.state for one in up.programs()} == dict.fromkeys(up.PROGRAMS, "RUNNING")
    everything = family()
    assert len(everything) > 8
    for name in ("prefect", "mlflow", "worker", "janitor"):
        before = {one.name: one.pid for one in up.programs()}[name]
        old = psutil.Process(before).children(recursive=True)
        os.kill(before, signal.SIGKILL)
        assert not psutil.wait_procs(old, timeout=10)[1], f"{name} left something behind"
        assert wait_for(
            lambda name=name, before=before: any(
                one.name == name and one.state == "RUNNING" and one.pid != before for one in up.programs()
            )
        ), f"{name} did not come back"
    assert wait_for(lambda: answers(services["prefect_api"]))
    everything = family()
    assert up.down()
    assert not psutil.wait_procs(everything, timeout=10)[1] and not state_file().exists()


@pytest.mark.slow
def test_nothing_outlives_a_supervisor_that_is_killed(services):
    everything = family()
    os.kill(everything[0].pid, signal.SIGKILL)
    assert not psutil.wait_procs(everything, timeout=15)[1]
    assert running_server() is None and not up.programs() and not up.down()


@pytest.mark.slow
def test_a_server_that_does_not_come_up_takes_all_down_and_says_why(home, monkeypatch):
    from refine.services.prefect_api import free_port

    wanted = up.Wanted(free_port(), free_port(), mlflow_database="sqlite:////proc/none/mlflow.db")
    with pytest.raises(ServiceError, match=r"mlflow ends instead of answering: .*mlflow\.log"):
        up.up(wanted)
    assert not up.supervisor_runs() and not state_file().exists()
