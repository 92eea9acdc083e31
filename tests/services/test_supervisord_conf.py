"""supervisord.conf as `refine up` writes it; tests/services/test_up.py runs it."""

from __future__ import annotations

import configparser

from refine.services.supervisord_conf import PROGRAMS, UpOptions, render


def test_a_password_with_special_characters_survives_and_is_in_no_command(home):
    url = 'postgresql+pg8000://me:50%25"off@db/mlflow'
    text = render(UpOptions(mlflow_database=url), home / "socket")
    read = configparser.RawConfigParser()
    read.read_string(text)
    assert {f"program:{name}" for name in PROGRAMS} <= set(read.sections())
    assert '50%%25\\"off' in read["program:mlflow"]["environment"] and url not in read["program:mlflow"]["command"]


def test_mlflow_accepts_other_host_names_only_with_another_host(home):
    options = UpOptions(host="trainer-1", mlflow_port=5001)
    read = configparser.RawConfigParser()
    read.read_string(render(options, home / "socket"))
    mlflow, prefect, worker = (read[f"program:{name}"] for name in ("mlflow", "prefect", "worker"))
    assert '"--host" "trainer-1"' in mlflow["command"] and '"trainer-1" "4200"' in prefect["command"]
    assert 'MLFLOW_SERVER_CORS_ALLOWED_ORIGINS="http://trainer-1:5001"' in mlflow["environment"]
    assert "trainer-1,trainer-1:*" in mlflow["environment"]
    assert 'MLFLOW_TRACKING_URI="http://trainer-1:5001"' in worker["environment"]
    alone = render(UpOptions(), home / "socket")
    assert "MLFLOW_SERVER_ALLOWED" not in alone and "MLFLOW_SERVER_CORS" not in alone and '"127.0.0.1"' in alone
