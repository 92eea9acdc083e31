"""A process is alive by the process table on this machine, and by its last sign of life elsewhere."""

from __future__ import annotations

import json

import pytest

from refine.system.liveness import ALIVE, LOST, OWNER, alive, last_sign, owner


def tags(changes=None, **more) -> dict:
    return {OWNER: json.dumps(owner() | (changes or {})), **more}


def test_this_process_is_alive_and_one_with_another_start_or_boot_is_not():
    assert alive(tags())
    assert not alive(tags({"started": owner()["started"] - 50})) and not alive(tags({"boot": "other"}))


def test_elsewhere_the_last_sign_of_life_decides():
    there = {"host": "elsewhere"}
    assert alive(tags(there, **{ALIVE: "1000"}), now=1000 + LOST - 1)
    assert not alive(tags(there, **{ALIVE: "1000"}), now=1000 + LOST + 1) and not alive(tags(there))


@pytest.mark.parametrize(
    "tag",
    ["", "{", "[]", "null", "7", "{}", json.dumps(owner() | {"pid": "1"}), json.dumps(owner() | {"pid": 10**30}),
     json.dumps(owner() | {"pid": -1}), json.dumps(owner() | {"started": None}), json.dumps(owner() | {"host": 5})],
    ids=range(11),
)  # fmt: skip
def test_an_owner_that_cannot_be_read_is_named_and_the_last_sign_of_life_decides(tag, caplog):
    assert alive({OWNER: tag, ALIVE: 1000}, now=1001) and not alive({OWNER: tag, ALIVE: 1000}, now=2000)
    assert f"tag {OWNER}: " in caplog.text and "\n" not in caplog.records[0].getMessage()


@pytest.mark.parametrize("value", ["", "x", None, []])
def test_a_sign_of_life_that_is_no_time_is_named(value, caplog):
    assert last_sign({ALIVE: value}) == 0 and f"tag {ALIVE} is " in caplog.text
