"""Bad values that are in no file: overrides, tags of versions, answers of servers; and machines without room."""

from __future__ import annotations

import errno
import json
import random

import pytest

from refine.errors import DataError, ModelError, ServiceError, SettingError
from refine.system.exhausted import is_full_disk, out_of_memory_in_one_line
from refine.system.files import file_beside, folder_beside
from tests.hostile import mutations as bad
from tests.hostile.contract import ONE_LINE, WORKED, outcome
from tests.hostile.fakes import Client, server
from tests.hostile.figures import SEED


@pytest.mark.parametrize("number", range(60))
def test_overrides(number, tmp_path, checkout):
    from refine import settings

    chance = random.Random(f"{SEED}/override/{number}")
    names = ("seed", "training.mid.steps", "data.train", "model.config", "nothing.such", "", ".", "seed.x")
    value = bad.as_json(bad.changed_tree({"a": [1]}, chance)).decode() if number % 2 else ""
    text = f"{chance.choice(names)}={value or chance.choice(bad.YAML_TEXTS).decode('utf-8', 'replace')}"
    kind, shown = outcome(lambda: settings.load(checkout / "params.yaml", [text]), ("override", "setting"), tmp_path)
    assert kind in (WORKED, ONE_LINE), shown


@pytest.mark.parametrize("number", range(60))
def test_tags_of_versions(number, tmp_path):
    from refine.tracking.registry import versions
    from refine.tracking.tags import METRICS, SETTINGS

    chance = random.Random(f"{SEED}/tags/{number}")
    good = {METRICS: {"val/loss": 1.0, "val/tokens": 3}, SETTINGS: {"steps": 2}}
    tag = chance.choice(list(good))
    text = chance.choice(bad.JSON_TEXTS) if number % 3 == 0 else bad.as_json(bad.changed_tree(good[tag], chance))
    tags = {name: json.dumps(value) for name, value in good.items()} | {tag: text.decode("utf-8", "replace")}
    kind, shown = outcome(lambda: versions(Client(tags), "model"), ("version 1",), tmp_path)
    assert kind in (WORKED, ONE_LINE), shown


ANSWERS = [
    (200, b"true", False), (200, b"nonsense", False), (200, b"", False), (200, b"[" * 9000, False), (204, b"", False),
    (200, b"true", True), (301, b"", False), (404, b"no", False), (401, b"no", False), (500, b"no", False),
    (200, b"\xff\xfe", False),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "cut"), ANSWERS)
def test_answers_of_servers(status, body, cut, tmp_path):
    from refine.services import prefect_api
    from refine.tracking import connection

    with server(status, body, cut=cut) as address:
        api = prefect_api.Api(address, "", False)
        for ask in (lambda: prefect_api.check_answers(api), lambda: connection.check_answers(address)):
            kind, shown = outcome(ask, ("server",), tmp_path)
            assert kind in (WORKED, ONE_LINE), shown
        kind, shown = outcome(lambda: prefect_api.answers(address), ("server",), tmp_path)
        assert kind == WORKED, shown


@pytest.mark.parametrize("writer", [file_beside, folder_beside])
def test_a_full_disk_is_one_line_and_leaves_nothing(writer, tmp_path):
    with (
        pytest.raises(DataError, match=r"result: cannot be written \(No space left on device\)"),
        writer(tmp_path / "result"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_an_error_of_another_kind_passes_a_writer_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError), file_beside(tmp_path / "result"):
        (tmp_path / "nowhere").read_text()
    assert not is_full_disk(ValueError("No space left on device"))


def test_memory_that_a_device_does_not_have_is_told_with_what_to_do():
    import torch

    with (
        pytest.raises(ModelError, match="out of memory while it is loaded: take less"),
        out_of_memory_in_one_line(ModelError, "while it is loaded", "take less"),
    ):
        torch.empty(2**56)
    with pytest.raises(RuntimeError, match="shape"), out_of_memory_in_one_line(ModelError, "", ""):
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_an_address_that_is_none_is_a_service_error(tmp_path):
    from refine.tracking import connection

    for address in ("http://", "http://[::1", "http://x:99999999", "https://\0"):
        with pytest.raises((ServiceError, SettingError)):
            connection.check_answers(address)
