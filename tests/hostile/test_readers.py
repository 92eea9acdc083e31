"""Every reader works on a bad input or says in one line what is wrong with it: no traceback, no hang, nothing half."""

from __future__ import annotations

import pytest

from tests.hostile.contract import ONE_LINE, WORKED, outcome
from tests.hostile.figures import COUNT, FAILURES, SEED
from tests.hostile.reader import empty
from tests.hostile.readers import READERS, tried


def _failures(found) -> str:
    return "\n".join(f"mutation {number}: {kind}\n{shown}" for number, kind, shown in found if kind in FAILURES)


@pytest.fixture(autouse=True)
def somewhere_small(tmp_path, monkeypatch):
    """A bad address may be `..`, all files below which are then looked for."""
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_the_good_sample_is_read(reader, tmp_path):
    """Otherwise the mutations would only show that everything is refused."""
    path = reader.damage(empty(tmp_path / "good"), None)
    kind, shown = outcome(lambda: reader.read(path), (path.name, *reader.names), tmp_path)
    assert kind == (WORKED if reader.answered else ONE_LINE), shown


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_a_bad_input_is_read_or_refused_in_one_line(reader, tmp_path):
    assert not _failures(tried(reader, tmp_path / "bad", COUNT, SEED))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_many_more_bad_inputs(reader, seed, tmp_path):
    assert not _failures(tried(reader, tmp_path / "bad", COUNT, seed))
