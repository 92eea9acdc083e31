"""Names of registered models and experiments are names, never paths."""

from __future__ import annotations

import pytest

from refine.errors import SettingError
from refine.system.names import LONGEST, check_name, fault

PATHS = ["a/b", "../x", "..", ".hidden", "a\\b", "/tmp/x", "a\0b", "a\nb", "x" * 100_000, "", " ", "a ", "C:x", "a'b"]


@pytest.mark.parametrize("name", PATHS)
def test_a_path_is_no_name(name):
    with pytest.raises(SettingError) as refused:
        check_name(name, "an experiment")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300
    assert "an experiment" in str(refused.value)


@pytest.mark.parametrize("name", ["refine-sample", "sweep: learning rate"[:5], "Übung 3 (zweite)", "a" * LONGEST])
def test_a_name_is_one(name):
    assert fault(name) == ""
    check_name(name, "an experiment")


def test_no_name_is_the_default():
    check_name(None, "an experiment")
