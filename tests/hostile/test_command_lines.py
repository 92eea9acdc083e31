"""Mutated command lines of every verb: exit code 0, 1 or 2, no traceback, no hang, nothing half-written."""

from __future__ import annotations

import random

import pytest

from refine.cli.main import main
from tests.hostile.command_lines import SERVERS, bad_line, verbs
from tests.hostile.contract import LIMIT, time_limit
from tests.hostile.figures import SEED

COUNT, MORE = 8, 40


@pytest.fixture
def place(tmp_path, monkeypatch, checkout):
    """A checkout's folder with params.yaml, a file and a folder, with a home and servers' addresses of its own."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("a file")
    (tmp_path / "params.yaml").write_bytes((checkout / "params.yaml").read_bytes())
    monkeypatch.setenv("REFINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _holds(line: list[str], place, capfd) -> None:
    """Run `line` and check the contract."""
    try:
        with time_limit(LIMIT):
            main(line)
        code = 0
    except SystemExit as ended:
        code = ended.code
    said = capfd.readouterr().err.strip().splitlines()
    assert code in (0, 1, 2), (line, said[-5:])
    if code:
        assert said, line
        told = [one for one in said if one.startswith("error: " if code == 1 else "Error: ")]
        assert len(told) == 1 and (code == 2 or told[0] == said[-1]), (line, said[-5:])  # click lists choices below
        assert len(said[-1]) < 7000, (line, said[-1][:300])
    assert "Traceback" not in "\n".join(said), (line, said)
    assert not [*place.rglob(".*.unfinished"), *place.rglob("*.safetensors")], line


def _seeded(verb: str, numbers, seed: int) -> list[list[str]]:
    return [bad_line(verb, random.Random(f"{seed}/{verb}/{number}")) for number in numbers]


@pytest.mark.parametrize("verb", sorted(verbs()))
def test_mutated_command_lines(verb, place, capfd):
    for line in _seeded(verb, range(1 if verb in SERVERS else COUNT), SEED):
        _holds(line, place, capfd)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 103))
@pytest.mark.parametrize("verb", sorted(set(verbs()) - set(SERVERS)))
def test_many_more_command_lines(verb, seed, place, capfd):
    for line in _seeded(verb, range(MORE), seed):
        _holds(line, place, capfd)


def test_the_mutator_names_every_verb_and_gives_the_same_lines_for_the_same_seed():
    assert set(SERVERS) < set(verbs()) and len(verbs()) > 20
    assert _seeded("evaluate", range(5), 1) == _seeded("evaluate", range(5), 1) != _seeded("evaluate", range(5), 2)
