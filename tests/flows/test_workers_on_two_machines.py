"""Workers on two machines and servers on a third, as docs/deployment.md says it, with the workers' folder shared."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refine.services import prefect_secret
from tests.conftest import wait_for
from tests.fixtures.machines import Machine
from tests.flows.test_crashes import DEPLOYMENT, Deployed

pytestmark = pytest.mark.slow
SCRIPTS = Path(sys.executable).parent
PREFECT, MLFLOW = 4200, 5000


@pytest.fixture
def team(plan, workplace, checkout, machines, monkeypatch) -> Any:
    """Servers on node0; the experiment deployed with scripted training; `worker(machine)` starts a worker there."""
    servers = machines[0]
    for name in ("PREFECT_HOME", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(checkout))
    (workplace / "deployed.py").write_text(
        "from flows import tasks\nfrom flows.pipeline import refine_experiment\n"
        f"tasks.REFINE = ({sys.executable!r}, {str(workplace / 'trainer.py')!r})\n"
        f"tasks.EVALUATE = ({sys.executable!r}, {str(workplace / 'evaluator.py')!r})\n"
    )
    (workplace / "prefect.yaml").write_text(DEPLOYMENT.format(folder=workplace))
    up = [str(SCRIPTS / "refine"), "up", "--host", servers.address, "--pool", "servers"]
    began = servers.start(*up, cwd=workplace)
    try:
        printed = began.communicate(timeout=300)[0]
        assert began.returncode == 0, printed
        yield _Team(workplace, servers)
    finally:
        subprocess.run(servers.command(str(SCRIPTS / "refine"), "down"), cwd=workplace, timeout=120, check=False)


class _Team(Deployed):
    """The deployment, asked for on the servers' machine."""

    def __init__(self, folder: Path, servers: Machine) -> None:
        self.servers = servers
        api = f"http://{servers.address}:{PREFECT}/api"
        self.variables = {
            "PREFECT_API_URL": api,
            "PREFECT_API_AUTH_STRING": prefect_secret.kept(),
            "MLFLOW_TRACKING_URI": f"http://{servers.address}:{MLFLOW}",
        }
        self.folder = folder
        self.environment = {**os.environ, **self.variables, "PREFECT_HOME": str(folder / "home/services/prefect")}
        self.prefect("work-pool", "create", "gpu", "--type", "process")
        self.prefect("--no-prompt", "deploy", "--all")

    def command(self, *arguments: str) -> list[str]:
        return self.servers.command(*arguments)

    def worker(self, machine: Machine) -> subprocess.Popen[str]:
        """Start a worker there, with a profile of Prefect and device locks of its own."""
        own = {
            "PREFECT_HOME": str(self.folder / machine.name),
            "REFINE_LOCKS": str(self.folder / f"locks-{machine.name}"),
            "REFINE_CHECKOUT": os.environ["PYTHONPATH"],
        }
        command = (str(SCRIPTS / "refine"), "worker", "--pool", "gpu")
        return machine.start(*command, cwd=self.folder, env={**self.environment, **own})


@pytest.mark.parametrize("machines", [3], indirect=True)
def test_a_run_whose_machine_lost_power_is_retried_on_another_and_goes_on(
    team, machines, plan, calls: Callable[[], list[str]]
):
    _, first, second = machines
    plan({"mid sft": ["sleep"]})
    worker = team.worker(first)
    run_id = team.start()
    assert wait_for(lambda: calls()[-1:] == ["mid sft"], 240), calls()
    first.kill()
    worker.wait(timeout=30)
    assert wait_for(lambda: team.states(run_id)[0] == "CRASHED", 300), team.states(run_id)
    with contextlib.closing(team.worker(second).stdout):
        team.prefect("flow-run", "retry", run_id)
        assert wait_for(lambda: team.states(run_id)[0] == "COMPLETED", 240), team.states(run_id)
    made = calls()  # on an idle device models are evaluated earlier, in a call of their own
    trained = [name for name in made if name != "evaluation"]
    assert trained == ["start", "mid none", "mid sft", "mid sft", "mid refine"], "a stage ran again"
    assert made[-1] == "evaluation"
