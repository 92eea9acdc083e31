"""docs/environment.md lists every environment variable that the code reads or sets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from refine.services import environment


@pytest.fixture(scope="module")
def page(checkout: Path) -> str:
    return (checkout / "docs" / "environment.md").read_text(encoding="utf-8")


def _variables(text: str) -> set[str]:
    return set(re.findall(r"\bREFINE_[A-Z_]+\b", text))


def test_the_page_lists_just_the_variables_of_the_code(page, checkout):
    files = [file for room in ("refine", "flows") for file in (checkout / room).rglob("*")]
    texts = [file.read_text(encoding="utf-8") for file in files if file.suffix in (".py", ".yaml")]
    code = set().union(*map(_variables, texts))
    assert len(code) > 10 and _variables(page) == code


def test_every_variable_of_the_code_has_a_row_with_its_default_and_who_sets_it(page):
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| `REFINE_")]
    assert {row[0].strip(" `") for row in rows} == _variables(page)
    assert all(len(row) == 4 and all(cell.strip() for cell in row) for row in rows)


def test_the_page_lists_what_is_set_for_other_programs(page):
    names = {*environment.MLFLOW, *environment.PREFECT, *environment.OTHERS, *environment.QUIET}
    assert {name for name in names if f"`{name}`" not in page} == set()
