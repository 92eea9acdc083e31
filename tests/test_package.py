"""`import refine` sets how OpenMP's threads wait, before torch is loaded, unless the user has set it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import refine


def printed(code: str, **variables: str) -> str:
    """What a new process prints, to both streams."""
    kept = {name: value for name, value in os.environ.items() if name not in refine.SPINNING}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**kept, **variables}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
    ids=["default", "the user's count", "the user's policy"],
)
def test_the_users_choice_goes_first(given, expected):
    code = "import refine, os, sys; print(os.environ.get('GOMP_SPINCOUNT')); assert 'torch' not in sys.modules"
    assert printed(code, **given).strip() == expected


@pytest.mark.skipif(sys.platform != "linux", reason="torch has GNU's OpenMP on Linux")
def test_torchs_openmp_takes_it_in_every_way_in():
    """Importing any module of the package sets it first; `python -m refine...` and the flows import one."""
    shown = printed("import refine.ops.swiglu", OMP_DISPLAY_ENV="VERBOSE")
    if "GOMP_SPINCOUNT" not in shown:
        pytest.skip("this build of torch has another OpenMP")
    assert "GOMP_SPINCOUNT = '1000'" in shown
