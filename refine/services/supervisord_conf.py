"""What `refine up` starts, as supervisord reads it: each program with its command, its environment and its leash."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from refine import paths
from refine.services import checkout, environment

LOOPBACK = "127.0.0.1"
SERVER_SECRET, CLIENT_SECRET = "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"  # user:password
PROGRAMS = ("prefect", "mlflow", "worker", "janitor")


@dataclass(frozen=True)
class Wanted:
    """What `refine up` starts. Databases: SQLAlchemy URLs; None is SQLite in $REFINE_HOME. artifacts: folder or s3://.

    host: the address of this machine that the servers listen on, and that browsers and workers reach them by.
    """

    prefect_port: int = 4200
    mlflow_port: int = 5000
    pool: str = "gpu"
    prefect_database: str | None = None
    mlflow_database: str | None = None
    artifacts: str | None = None
    host: str = LOOPBACK


def folder() -> Path:
    """Where the services keep what they need."""
    return paths.home() / "services"


def addresses_of(wanted: Wanted) -> dict[str, str]:
    """Addresses of Prefect's pages (prefect) and API (prefect_api), and of MLflow (mlflow)."""
    prefect = f"http://{wanted.host}:{wanted.prefect_port}"
    mlflow = f"http://{wanted.host}:{wanted.mlflow_port}"
    return {"prefect": prefect, "prefect_api": f"{prefect}/api", "mlflow": mlflow}


def configuration(wanted: Wanted, socket: Path) -> str:
    """supervisord.conf, with every program on its leash; supervisord listens on the Unix socket `socket`."""
    home, addresses = paths.home(), addresses_of(wanted)
    server = ["--host", wanted.host, "--port"]
    bin_folder = Path(sys.executable).parent
    commands = {
        "prefect": [str(bin_folder / "prefect"), "server", "start", *server, str(wanted.prefect_port)],
        "mlflow": [str(bin_folder / "mlflow"), "server", *server, str(wanted.mlflow_port), "--workers", "1"],
        "worker": [sys.executable, "-m", "refine.services.worker", wanted.pool],
        "janitor": [sys.executable, "-m", "refine.services.janitor"],
    }
    client = {"PREFECT_API_URL": addresses["prefect_api"], "MLFLOW_TRACKING_URI": addresses["mlflow"]}
    if secret := os.environ.get(SERVER_SECRET):
        client[CLIENT_SECRET] = secret
    variables = {
        "prefect": {"PREFECT_UI_API_URL": addresses["prefect_api"]}
        | ({"PREFECT_API_DATABASE_CONNECTION_URL": wanted.prefect_database} if wanted.prefect_database else {}),
        "mlflow": {
            "MLFLOW_BACKEND_STORE_URI": wanted.mlflow_database or f"sqlite:///{home / 'mlflow.db'}",
            "MLFLOW_ARTIFACTS_DESTINATION": wanted.artifacts or (home / "mlartifacts").as_uri(),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        | _open_to_others(wanted, addresses),
        "worker": client | {checkout.VARIABLE: os.environ.get(checkout.VARIABLE) or str(Path.cwd())},
        "janitor": client,
    }
    sections = [_head(socket)]
    sections += [_program(name, commands[name], variables[name]) for name in PROGRAMS]
    return "\n".join(sections)


def _open_to_others(wanted: Wanted, addresses: dict[str, str]) -> dict[str, str]:
    """MLflow answers loopback alone, unless it is told which name it goes by and which pages may write."""
    if wanted.host == LOOPBACK:
        return {}
    hosts = [name for host in (wanted.host, "localhost", LOOPBACK) for name in (host, f"{host}:*")]
    return {
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(hosts),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": addresses["mlflow"],
    }


def _head(socket: Path) -> str:
    place = folder()
    return f"""[unix_http_server]
file={socket}
chmod=0700

[supervisord]
logfile={place}/supervisord.log
pidfile={place}/supervisord.pid
childlogdir={place}
umask=077

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl=unix://{socket}
"""


def _program(name: str, command: list[str], variables: dict[str, str]) -> str:
    shared = {
        **environment.variables(),
        "REFINE_HOME": str(paths.home()),
        "PREFECT_HOME": os.environ.get("PREFECT_HOME") or str(folder() / "prefect"),
        "PYTHONUNBUFFERED": "1",
    }
    told = ",".join(f'{key}="{_escaped(value)}"' for key, value in {**shared, **variables}.items())
    leashed = " ".join(
        f'"{_escaped(part)}"' for part in [sys.executable, "-m", "refine.services.supervised_program", *command]
    )
    return f"""[program:{name}]
command={leashed}
environment={told}
directory={_escaped(str(Path.cwd()))}
autorestart=true
startsecs=3
startretries=5
stopwaitsecs=20
redirect_stderr=true
stdout_logfile={folder()}/{name}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=1
"""


def _escaped(value: str) -> str:
    """supervisord reads % as an expansion, and quotes as ends."""
    return value.replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')
