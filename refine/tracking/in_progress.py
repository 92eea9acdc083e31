"""Whether MLflow shows a run as in progress, asked without its client: to import that takes seconds."""

from __future__ import annotations

import json
import sqlite3
import urllib.request
from contextlib import closing
from http.client import HTTPException
from pathlib import Path
from typing import Any

from refine.system.addresses import http_address, reach_directly, request
from refine.tracking import outbox
from refine.tracking.connection import PATIENCE, SQLITE_PREFIX, VARIABLE, authorization, sqlite_file

RUNNING = "RUNNING"


def may_run(uri: str) -> bool:
    """False only if MLflow at `uri` surely has no run in progress, and no record waits to be delivered to it. Where it
    cannot be asked so, True: its client then says what is wrong. Raises SettingError: `uri` is no address."""
    try:
        if any(outbox.folder().glob("*.jsonl")):
            return True
        if uri.startswith(SQLITE_PREFIX):
            return _in_file(sqlite_file(uri))
        return not uri.startswith("http") or _on_server(uri)
    except (OSError, ValueError, LookupError, HTTPException, sqlite3.Error):
        return True


def _in_file(file: Path) -> bool:
    if not file.exists():
        return False
    with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as database:
        return database.execute("SELECT 1 FROM runs WHERE status = ? LIMIT 1", (RUNNING,)).fetchone() is not None


def _on_server(uri: str) -> bool:
    address, credentials = http_address(uri, f"MLflow's address ({VARIABLE})", "http://HOST:PORT")
    reach_directly()

    def asked(question: str, **fields: Any) -> Any:
        about = request(f"{address}/api/2.0/mlflow/{question}", authorization(credentials))
        about.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(about, json.dumps(fields).encode(), timeout=PATIENCE) as answer:
            return json.load(answer)

    known = asked("experiments/search", max_results=1000)
    if known.get("next_page_token"):
        return True
    ids = [one["experiment_id"] for one in known.get("experiments", ())]
    found = asked("runs/search", experiment_ids=ids, filter=f"attributes.status = '{RUNNING}'", max_results=1)
    return bool(found.get("runs"))
