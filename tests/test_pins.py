"""The pinned versions fit pyproject.toml and each other, on Linux x86-64 and on macOS arm64. Reads the metadata of what
is installed; asks no index."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

LINUX = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"}
MACOS = {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64", "os_name": "posix"}
PYTHONS = ("3.11", "3.12", "3.13")


@pytest.fixture(scope="module")
def text(checkout: Path) -> str:
    return (checkout / ".ci" / "pins.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pins(text: str) -> dict[str, Version]:
    """Package -> pinned version."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found = [re.fullmatch(r"([\w.-]+)==([\w.!+]+)", line) for line in lines]
    assert all(found) and len(found) > 100, "each line is NAME==VERSION"
    return {canonicalize_name(one[1]): Version(one[2]) for one in found if one}


def conflicts(pins: dict[str, Version], needed: list[Requirement], extra: str, **machine: str) -> Iterator[str]:
    """The requirements that the pins do not satisfy on a machine. A package without a pin may have any version."""
    for one in needed:
        if one.marker is not None and not one.marker.evaluate({**default_environment(), **machine, "extra": extra}):
            continue
        pinned = pins.get(canonicalize_name(one.name))
        if pinned is not None and not one.specifier.contains(pinned, prereleases=True):
            yield f"{one}, and the pin is {pinned}"


def machines() -> list[dict[str, str]]:
    return [
        {**system, "python_version": python, "python_full_version": f"{python}.0"}
        for system in (LINUX, MACOS)
        for python in PYTHONS
    ]


def test_the_pins_fit_pyproject_and_hold_all_that_it_names(pins, checkout):
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for needed in ([Requirement(line) for line in group] for group in groups):
        assert {canonicalize_name(one.name) for one in needed} <= set(pins)
        for machine in machines():
            assert list(conflicts(pins, needed, "", **machine)) == []


def test_what_the_pinned_packages_require_of_each_other_fits(pins):
    seen = 0
    for name, version in pins.items():
        try:
            installed = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # of another platform
            continue
        if Version(installed.version).public != version.public:
            continue  # its metadata is another version's
        seen += 1
        needed = [Requirement(line) for line in installed.requires or ()]
        for machine in machines():
            assert list(conflicts(pins, needed, "", **machine)) == [], f"{name} {version} on {machine}"
    assert seen > 100, "most of the pins are installed here"


def test_triton_is_the_version_that_torch_with_cuda_requires(pins, text):
    """A CPU build of torch, as it may be installed here, does not name it; the pins' heading does."""
    found = re.search(r"^# torch==(\S+) on Linux requires (triton==\S+?);", text, re.MULTILINE)
    assert found, "the heading of .ci/pins.txt says which triton torch requires"
    assert found[1] == str(pins["torch"]), "torch's pin has changed: look up again which triton it requires"
    machine = {**LINUX, "python_version": "3.12", "python_full_version": "3.12.0"}
    assert list(conflicts(pins, [Requirement(found[2])], "", **machine)) == []


def test_a_conflict_is_found(pins):
    wrong = {**pins, "triton": Version("3.9.0")}
    machine = {**LINUX, "python_version": "3.12", "python_full_version": "3.12.0"}
    needed = [Requirement('triton==3.7.1; platform_system == "Linux"')]
    assert list(conflicts(wrong, needed, "", **machine)) == [f"{needed[0]}, and the pin is 3.9.0"]
    assert list(conflicts(wrong, needed, "", **{**machine, **MACOS})) == []


def test_no_pin_names_a_build_or_an_index(text):
    """A local version (torch's +cpu) or an address would bind the pins to one machine."""
    rows = [line for line in text.splitlines() if not line.startswith("#")]
    assert [line for line in rows if "+" in line or "://" in line or "@" in line or line.startswith("-")] == []
