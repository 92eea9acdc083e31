"""Commands that are forks: as those that are started anew, but with the modules imported already."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import psutil
import pytest

from refine.system.forks import ForkServer
from refine.system.processes import ProcessFailed, environment_of_command, run_in_own_process
from tests.conftest import wait_for

PROGRAMS = {
    "heavy": "import os; made_in = os.getpid()",
    "says": """
        import os, sys
        import heavy
        in_guards_session, no_input = os.getsid(0) == os.getppid(), sys.stdin.read() == ""
        print(sys.argv[1:], __name__, heavy.made_in != os.getpid(), in_guards_session, no_input)
        print(os.environ["OMP_NUM_THREADS"], os.environ["REFINE_DIES_WITH"], os.getcwd(), file=sys.stderr)
        print(os.environ.get("MLFLOW_REGISTRY_URI"))
    """,
    "fails": "import sys; print('error: the file is missing'); sys.exit(1)",
    "dies": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "sleeps": """
        import os, sys, time
        open(sys.argv[1] + ".tmp", "w").write(f"{os.getpid()} {os.getppid()}")
        os.replace(sys.argv[1] + ".tmp", sys.argv[1])
        time.sleep(600)
    """,
    "threads": "import threading, time; threading.Thread(target=time.sleep, args=(600,), daemon=True).start()",
}
VARIABLES = {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def programs(tmp_path, monkeypatch, checkout) -> Path:
    """A folder with the programs as modules, on the path of commands."""
    for name, text in PROGRAMS.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(checkout))
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    return tmp_path


@pytest.fixture
def server(programs):
    made = ForkServer("heavy")
    yield made
    made.close()


def run(server: ForkServer, *words: str, **options) -> list[str]:
    return run_in_own_process([sys.executable, "-m", *words], forks=server, environment=VARIABLES, **options)


def test_a_fork_is_as_a_command_started_anew_but_has_its_modules(server, programs):
    server.prepare(environment_of_command(VARIABLES))
    first = run(server, "says", "a", "b c")
    assert first == ["['a', 'b c'] __main__ True True True", f"1 {os.getpid()} {programs}", "None"]
    anew = run_in_own_process([sys.executable, "-m", "says", "a", "b c"], environment=VARIABLES)
    assert anew == [first[0].replace("True", "False", 1), *first[1:]]


def test_a_failure_is_told_as_of_a_command_started_anew(server):
    with pytest.raises(ProcessFailed, match="the file is missing") as failed:
        run(server, "fails")
    assert failed.value.user_error and failed.value.returncode == 1
    with pytest.raises(ProcessFailed, match="SIGKILL") as failed:
        run(server, "dies")
    assert failed.value.returncode == -signal.SIGKILL
    assert run(server, "says")[0].startswith("[]"), "the server goes on after a failure"


def test_a_guard_that_is_killed_takes_its_command_along(server, programs):
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            run(server, "sleeps", str(programs / "ids"))
        except ProcessFailed as error:
            ended.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert wait_for((programs / "ids").exists)
    command, guard = map(int, (programs / "ids").read_text().split())
    os.kill(guard, signal.SIGKILL)
    thread.join(10)
    assert not thread.is_alive() and "SIGKILL" in str(ended[0]) and wait_for(lambda: not psutil.pid_exists(command))


def test_server_and_commands_end_with_the_parent(programs):
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent("""
            import sys
            from refine.system.forks import ForkServer
            from refine.system.processes import run_in_own_process
            run_in_own_process([sys.executable, "-m", "sleeps", "ids"], forks=ForkServer("heavy"))
            """),
        ]
    )
    assert wait_for((programs / "ids").exists)
    family = [psutil.Process(int(number)) for number in (programs / "ids").read_text().split()]
    family += psutil.Process(parent.pid).children()
    assert len(family) == 3
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


@pytest.mark.parametrize("modules", [("no_such_module",), ("heavy", "threads")])
def test_what_cannot_be_forked_is_started_anew_with_a_word_about_it(modules, programs, caplog):
    server = ForkServer(*modules)
    assert server.able
    assert " False True True" in run(server, "says")[0], "a process of its own imported the module"
    assert "from now on each process imports its modules itself" in caplog.text and not server.able


def test_another_environment_or_folder_is_no_fork(server, programs):
    run(server, "says")
    other = run_in_own_process([sys.executable, "-m", "says"], forks=server, environment={"OMP_NUM_THREADS": "2"})
    assert " False True True" in other[0] and other[1].startswith("2 ")
    late = {
        "OMP_NUM_THREADS": "1",
        "MLFLOW_REGISTRY_URI": "sqlite:///x",
    }  # set later
    told = run_in_own_process([sys.executable, "-m", "says"], forks=server, environment=late)
    assert " True True True" in told[0] and told[2] == "sqlite:///x"
    (programs / "elsewhere").mkdir()
    code = run_in_own_process([sys.executable, "-c", "print(1)"], forks=server, cwd=str(programs / "elsewhere"))
    assert code == ["1"] and " True True True" in run(server, "says")[0]
