"""supervisord.conf: each program of `refine up` with its command and its environment.

Each command runs inside `refine.services.supervised_program`, so that it never outlives the supervisor.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from refine import paths
from refine.errors import SettingError
from refine.services import checkout, environment, prefect_secret, prefect_server
from refine.system.addresses import local_path
from refine.system.local_services import services_folder

LOOPBACK = "127.0.0.1"
PROGRAMS = ("prefect", "mlflow", "worker", "janitor")


@dataclass(frozen=True)
class UpOptions:
    """The options of `refine up`. Databases are SQLAlchemy URLs; None is SQLite in $REFINE_HOME. artifacts: a folder or
    s3://... . host: the address of this machine on which the servers listen, and which browsers and workers use.
    """

    prefect_port: int = 4200
    mlflow_port: int = 5000
    pool: str = "gpu"
    prefect_database: str | None = None
    mlflow_database: str | None = None
    artifacts: str | None = None
    host: str = LOOPBACK


def addresses(options: UpOptions) -> dict[str, str]:
    """The addresses of Prefect's pages (prefect), Prefect's API (prefect_api) and MLflow (mlflow)."""
    prefect = f"http://{options.host}:{options.prefect_port}"
    mlflow = f"http://{options.host}:{options.mlflow_port}"
    return {"prefect": prefect, "prefect_api": f"{prefect}/api", "mlflow": mlflow}


def mlflow_database(options: UpOptions) -> str:
    """The address of MLflow's database."""
    return options.mlflow_database or f"sqlite:///{paths.home() / 'mlflow.db'}"


def artifacts(options: UpOptions) -> str:
    """The address of the folder or bucket in which MLflow's server keeps models and files."""
    folder = local_path(options.artifacts or str(paths.home() / "mlartifacts"))
    return str(options.artifacts) if folder is None else folder.absolute().as_uri()


def render(options: UpOptions, socket: Path) -> str:
    """The text of supervisord.conf. supervisord listens on the Unix socket `socket`."""
    commands, variables = _commands(options), _variables(options)
    programs = [_program(name, commands[name], variables[name]) for name in PROGRAMS]
    return "\n".join([_head(socket), *programs])


def _commands(options: UpOptions) -> dict[str, list[str]]:
    return {
        "prefect": [sys.executable, "-m", "refine.services.prefect_server", options.host, str(options.prefect_port)],
        "mlflow": [sys.executable, "-m", "refine.services.mlflow_server", options.host, str(options.mlflow_port)],
        "worker": [sys.executable, "-m", "refine.services.worker", options.pool],
        "janitor": [sys.executable, "-m", "refine.services.janitor"],
    }


def _variables(options: UpOptions) -> dict[str, dict[str, str]]:
    """The environment variables of each program, beside those that all share."""
    urls, secret = addresses(options), prefect_secret.choose()
    client = {
        "PREFECT_API_URL": urls["prefect_api"],
        "MLFLOW_TRACKING_URI": urls["mlflow"],
        prefect_secret.CLIENT: secret,
    }
    own_pages = os.environ.get(prefect_server.ORIGINS) or prefect_server.origins(options.host, options.prefect_port)
    return {
        "prefect": {"PREFECT_UI_API_URL": urls["prefect_api"], prefect_secret.SERVER: secret}
        | {prefect_server.ORIGINS: own_pages, "PREFECT_UI_URL": urls["prefect"]}  # notifications link to its pages
        | ({"PREFECT_API_DATABASE_CONNECTION_URL": options.prefect_database} if options.prefect_database else {}),
        "mlflow": {
            "MLFLOW_BACKEND_STORE_URI": mlflow_database(options),
            "MLFLOW_ARTIFACTS_DESTINATION": artifacts(options),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        | _allowed_hosts(options, urls["mlflow"]),
        "worker": client | {checkout.VARIABLE: os.environ.get(checkout.VARIABLE) or str(Path.cwd())},
        "janitor": client,
    }


def _allowed_hosts(options: UpOptions, mlflow: str) -> dict[str, str]:
    """Without these variables MLflow refuses requests that come under another host name than loopback's."""
    if options.host == LOOPBACK:
        return {}
    hosts = [name for host in (options.host, "localhost", LOOPBACK) for name in (host, f"{host}:*")]
    return {
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(hosts),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": mlflow,
    }


def _head(socket: Path) -> str:
    return f"""[supervisord]
environment=NUMBER_SIGN="#",SEMICOLON=";"
logfile=%(here)s/supervisord.log
pidfile=%(here)s/supervisord.pid
childlogdir=%(here)s
umask=077

[unix_http_server]
file={_escaped(str(socket))}
chmod=0700

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl=unix://{_escaped(str(socket))}
"""


def _program(name: str, command: list[str], variables: dict[str, str]) -> str:
    shared = {
        **environment.variables(),
        "REFINE_HOME": str(paths.home()),
        "PREFECT_HOME": os.environ.get("PREFECT_HOME") or str(services_folder() / "prefect"),
        "PYTHONUNBUFFERED": "1",
    }
    environment_line = ",".join(f"{key}={_quoted(key, value)}" for key, value in {**shared, **variables}.items())
    log = str(services_folder() / f"{name}.log")  # supervisord expands this name twice
    supervised = [sys.executable, "-m", "refine.services.supervised_program", *command]
    command_line = " ".join('"' + _escaped(re.sub(r'(["\\])', r"\\\1", part)) + '"' for part in supervised)
    return f"""[program:{name}]
command={command_line}
environment={environment_line}
directory={_escaped(str(Path.cwd()))}
autorestart=true
startsecs=3
startretries=5
stopwaitsecs=20
redirect_stderr=true
stdout_logfile={_escaped(log.replace("%", "%%"))}
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=1
"""


def _escaped(value: str) -> str:
    """supervisord expands `%`, and takes what follows ` #` or ` ;` for a comment."""
    return value.replace("%", "%%").replace("#", "%(ENV_NUMBER_SIGN)s").replace(";", "%(ENV_SEMICOLON)s")


def _quoted(name: str, value: str) -> str:
    """A value of `environment=`. supervisord knows no escape there: the quote around a value cannot be in it, and it
    cuts off quotes at the ends. Raises SettingError for a value that cannot be written."""
    quote = "'" if '"' in value else '"'
    if quote in value or value != value.strip("'\""):
        raise SettingError(
            f"{name}: supervisord cannot take a value with both kinds of quotes, or with one at its start or end: "
            "write %22 and %27 in an address, and rename a folder"
        )
    return f"{quote}{_escaped(value)}{quote}"
