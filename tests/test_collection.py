"""`pytest -m requires_cuda` runs on a machine that has torch, and lacks the packages of data, tracking and flows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LACKING = ("datasets", "dvc", "mlflow", "prefect", "pyarrow", "s3fs")


@pytest.fixture
def without_packages(tmp_path: Path) -> dict[str, str]:
    """An environment in which pytest's plugin `lacking` makes LACKING impossible to import."""
    (tmp_path / "lacking.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({LACKING}))\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}


def test_the_tests_that_need_a_gpu_are_collected_without_the_packages_of_other_tests(checkout, without_packages):
    command = [sys.executable, "-m", "pytest", "-p", "lacking", "-p", "no:cacheprovider", "--collect-only", "-q"]
    done = subprocess.run(
        [*command, "-m", "requires_cuda"],
        cwd=checkout,
        env=without_packages,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    files = {line.split("::")[0] for line in done.stdout.splitlines() if "::" in line}
    assert files >= {"tests/ops/delta_rule/test_fla.py", "tests/ops/attention/test_window.py"}
    marked = [
        p
        for p in (checkout / "tests").rglob("test_*.py")
        if "@pytest.mark.requires_cuda" in p.read_text() and p != Path(__file__)
    ]
    assert files == {str(path.relative_to(checkout)) for path in marked}
