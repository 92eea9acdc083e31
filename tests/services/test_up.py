"""`refine up` starts all services or none and restarts a service that dies; no process outlives the supervisor."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import stat

import psutil
import pytest
from click.testing import CliRunner

from refine.cli.main import cli
from refine.errors import ServiceError, SettingError
from refine.services import up
from refine.services.prefect_api import answers, running_server
from refine.system.files import write_private
from refine.system.local_services import state_file
from tests.conftest import wait_for


def family() -> list[psutil.Process]:
    """The supervisor and everything below it."""
    pid = up.supervisor_pid()
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)] if pid else []


def test_the_configuration_with_its_passwords_is_readable_by_its_owner_alone(home):
    file = home / "services" / "supervisord.conf"
    write_private(file, "password")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_taken_port_is_reported_before_anything_starts(home):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ServiceError, match=rf"port {port} is taken.*--prefect-port") as error:
            up.up(up.UpOptions(prefect_port=port))
    assert "\n" not in str(error.value) and not up.supervisor_runs() and not state_file().exists()


def test_ports_out_of_range_and_equal_ports_are_refused(home):
    with pytest.raises(SettingError, match="--prefect-port and --mlflow-port are both 4300"):
        up.up(up.UpOptions(prefect_port=4300, mlflow_port=4300))
    refused = CliRunner().invoke(cli, ["up", "--prefect-port", "99999"])
    assert refused.exit_code == 2 and "99999 is not in the range 1<=x<=65535" in refused.output
    assert not up.supervisor_runs()


def test_an_unwritable_home_is_reported(monkeypatch):
    monkeypatch.setenv("REFINE_HOME", "/proc/home")
    with pytest.raises(ServiceError, match=r"cannot write to /proc/home.*REFINE_HOME"):
        up.up(up.UpOptions())


def test_another_machines_address_is_reported_before_anything_starts(home):
    with pytest.raises(ServiceError, match=r"--host 203\.0\.113\.1: .*name an address of this machine"):
        up.up(up.UpOptions(host="203.0.113.1"))
    assert not up.supervisor_runs()


def test_a_process_id_that_another_process_has_now_is_not_taken_for_the_supervisor(home):
    (home / "services").mkdir()
    (home / "services" / "supervisord.pid").write_text(str(os.getpid()))
    assert up.supervisor_pid() is None and not up.down()


@pytest.mark.slow
def test_a_killed_service_is_restarted_and_down_ends_all(services):
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
def test_when_one_server_does_not_come_up_all_end_with_its_last_line_and_log(home, monkeypatch):
    from refine.services.prefect_api import free_port

    with sqlite3.connect(home / "half.db") as half:
        half.execute("CREATE TABLE experiments (name TEXT)")  # MLflow cannot add its own table of this name
    wanted = up.UpOptions(free_port(), free_port(), mlflow_database=f"sqlite:///{home / 'half.db'}")
    with pytest.raises(ServiceError, match=r"mlflow ends instead of answering: .*mlflow\.log"):
        up.up(wanted)
    assert not up.supervisor_runs() and not state_file().exists()
