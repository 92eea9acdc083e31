"""Deployed flows under SIGKILL: no process survives, no run stays Running, and a retry resumes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from refine.services import prefect_secret
from refine.services.prefect_api import free_port
from tests.conftest import wait_for

pytestmark = pytest.mark.slow
TWO_MINUTES = 120.0
SIGNS = {"worker": "worker start --pool", "flow": "-m prefect.engine", "child": "trainer.py train"}  # command lines

DEPLOYMENT = """
name: test
pull:
  - prefect.deployments.steps.set_working_directory: {{directory: {folder}}}
deployments:
  - {{name: test, entrypoint: "deployed.py:refine_experiment", work_pool: {{name: gpu}}}}
"""


@pytest.fixture
def deployed(plan, workplace, checkout, monkeypatch):
    """Services, and the experiment deployed with scripted training."""
    from refine.services import up

    (workplace / "deployed.py").write_text(
        "import sys\n"
        "from flows import tasks\n"
        "from flows.pipeline import refine_experiment\n"
        f"tasks.REFINE = (sys.executable, {str(workplace / 'trainer.py')!r})\n"
        f"tasks.EVALUATE = (sys.executable, {str(workplace / 'evaluator.py')!r})\n"
        "tasks.FORKS = None\n"
    )
    (workplace / "prefect.yaml").write_text(DEPLOYMENT.format(folder=workplace))
    for name in ("PREFECT_API_URL", "PREFECT_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(checkout))
    try:
        addresses = up.up(up.UpOptions(prefect_port=free_port(), mlflow_port=free_port()))
        yield Deployed(workplace, addresses["prefect_api"])
    finally:
        up.down()


class Deployed:
    """The deployment, through Prefect's own command line and API."""

    def __init__(self, folder: Path, api: str) -> None:
        self.folder = folder
        variables = {"PREFECT_API_URL": api, "PREFECT_API_AUTH_STRING": prefect_secret.kept()}
        self.environment = {**os.environ, **variables, "PREFECT_HOME": str(folder / "home/services/prefect")}
        self.prefect("--no-prompt", "deploy", "--all")

    def command(self, *arguments: str) -> list[str]:
        """`arguments`, run where the servers are."""
        return list(arguments)

    def prefect(self, *arguments: str) -> str:
        command = self.command(str(Path(sys.executable).parent / "prefect"), *arguments)
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self) -> str:
        """Start a run. Returns its id."""
        printed = self.prefect("deployment", "run", "refine-experiment/test")
        return next(line.split("UUID:")[1].strip() for line in printed.splitlines() if "UUID:" in line)

    def states(self, run_id: str) -> tuple[str, list[str]]:
        """The states of the flow run and of its task runs."""
        code = (
            "import sys\nfrom uuid import UUID\nfrom prefect.client.orchestration import get_client\n"
            "from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId\n"
            "with get_client(sync_client=True) as client:\n"
            "    print(client.read_flow_run(UUID(sys.argv[1])).state.type.value)\n"
            "    chosen = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(sys.argv[1])]))\n"
            "    for one in client.read_task_runs(flow_run_filter=chosen):\n        print(one.state.type.value)\n"
        )
        asked = subprocess.run(
            self.command(sys.executable, "-c", code, run_id), env=self.environment, capture_output=True, text=True
        )
        assert asked.returncode == 0, asked.stderr
        flow, *tasks = asked.stdout.split()
        return flow, tasks


def processes(folder: Path) -> dict[str, psutil.Process]:
    """The worker, the flow's process and its training child."""
    from refine.services import up

    below = psutil.Process(up.supervisor_pid()).children(recursive=True)
    found = {}
    for one in below:
        line = " ".join(one.cmdline()) if one.is_running() and one.status() != psutil.STATUS_ZOMBIE else ""
        for name, sign in SIGNS.items():
            if sign in line and "refine.services.supervised_program" not in line and " -c " not in line:
                found[name] = one
    return found


@pytest.mark.parametrize("killed", [("flow",), ("worker", "flow", "child"), ("worker",)], ids="-".join)
def test_a_killed_flow_ends_is_marked_crashed_and_resumes(deployed, plan, calls, workplace, killed):
    from refine.tracking.connection import connect
    from refine.tracking.run import end_dead_runs

    plan({"mid none": ["sleep"]})
    run_id = deployed.start()
    assert wait_for(lambda: calls()[-1:] == ["mid none"], 180), calls()
    assert wait_for(lambda: {"flow", "child", "worker"} <= set(processes(workplace)), 20)
    found = processes(workplace)
    client = connect(f"sqlite:///{workplace}/home/mlflow.db")
    for name in killed:
        os.kill(found[name].pid, signal.SIGKILL)
    ended = [found["flow"], found["child"]]
    assert not psutil.wait_procs(ended, timeout=15)[1], "a flow or its training outlived its parent"
    if len(killed) > 1:  # as `refine status` does, before the janitor comes
        end_dead_runs(client)
    assert wait_for(lambda: deployed.states(run_id)[0] == "CRASHED", TWO_MINUTES), deployed.states(run_id)
    unfinished = {"RUNNING", "PENDING", "SCHEDULED"}
    assert wait_for(lambda: not unfinished & set(deployed.states(run_id)[1]), TWO_MINUTES), deployed.states(run_id)
    experiments = [one.experiment_id for one in client.search_experiments()]
    assert wait_for(lambda: not client.search_runs(experiments, "attributes.status = 'RUNNING'"), TWO_MINUTES)
    deployed.prefect("flow-run", "retry", run_id)
    assert wait_for(lambda: deployed.states(run_id)[0] == "COMPLETED", 180), deployed.states(run_id)
    assert calls() == ["start", "mid none", "mid none", "mid sft", "mid refine", "evaluation"], "a stage ran again"
    assert "RUNNING" not in deployed.states(run_id)[1]
    finished = client.search_runs(experiments, "attributes.status = 'FINISHED'")
    assert len(finished) == 8, "a run is missing or exists twice"


def test_down_ends_the_runs_in_prefect_too(deployed, plan, calls, workplace):
    from refine.services import up

    plan({"mid none": ["sleep"]})
    run_id = deployed.start()
    assert wait_for(lambda: calls()[-1:] == ["mid none"], 180), calls()
    (shown,) = up.flow_runs_in_progress()
    assert shown.id == run_id and shown.ends and shown.state == "Running"
    said: list[str] = []
    assert up.down(said.append)
    assert f"Prefect run {shown.name} ended: its process is gone" in said, said
    address = urlsplit(deployed.environment["PREFECT_API_URL"])
    up.up(up.UpOptions(prefect_port=address.port or 0, mlflow_port=free_port()))  # the server alone can tell
    flow, tasks = deployed.states(run_id)
    assert flow == "CRASHED" and sorted(tasks) == ["COMPLETED", "CRASHED"]
