"""The pages tell the truth: links, paths, modules, commands and make targets that they name exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import click
import pytest

from tests.conftest import CHECKOUT, file_of

PAGES = [*(CHECKOUT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *CHECKOUT.glob("docs/*.md")]
ROOTS = "refine|flows|tests|benchmarks|docs"
ABSENT = re.compile(r"\bMETHOD\b|\b(?:FACTS|HOUSE|ARCHITECTURE)\.md\b|\(FACTS:")  # notes that are not in the project


@pytest.fixture(params=PAGES, ids=lambda page: page.relative_to(CHECKOUT).as_posix())
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


def _blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of each fenced block; README's tree of rooms belongs to test_readme."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [block for block in found if block[0] != "tree"]


def _code(page: Path) -> list[str]:
    """Every fenced block and every span in backticks, a span on one line."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    return [*(text for _, text in _blocks(page)), *spans]


def _commands(page: Path) -> list[list[str]]:
    """The words of each `refine ...` that a line, or a command after `&&`, begins with."""
    pattern = r"(?:^|&&|→)\s*(?:\.venv/bin/)?refine +([a-z][^\n]*)"
    lines = [line for code in _code(page) for line in re.findall(pattern, code.replace("\\\n", " "), re.MULTILINE)]
    return [re.split(r"\s#|\s{2,}|&&|→", line)[0].split() for line in lines]


def test_every_link_leads_to_a_file(page):
    links = re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_path_exists(page):
    pattern = rf"(?<![\w./$-])(?:{ROOTS})/[\w./*{{}},-]*"
    paths = {path.rstrip(".,") for code in _code(page) for path in re.findall(pattern, code)}
    assert [path for path in sorted(paths) if not any(CHECKOUT.glob(path.rstrip("/")))] == []


def test_every_module_that_is_run_exists(page):
    modules = {name for code in _code(page) for name in re.findall(rf"-m ((?:{ROOTS})[\w.]*)", code)}
    assert [name for name in sorted(modules) if not name.endswith(".NAME") and file_of(name) is None] == []


def test_every_import_in_an_example_exists(page):
    imported = [
        (node.module, alias.name)
        for language, text in _blocks(page)
        if language == "python"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "refine"
        for alias in node.names
    ]
    for module, name in imported:
        assert file_of(module) is not None, module
        assert re.search(rf"\b{name}\b", file_of(module).read_text(encoding="utf-8")), f"{module}.{name}"


def test_every_command_and_its_options_exist(page):
    from refine.cli.main import cli

    for words in _commands(page):
        command: click.Command | None = cli
        context, rest = click.Context(cli), list(words)
        while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
            # A page may name subcommands together: `train start|mid|post`.
            names = rest.pop(0).split("|")
            found = [command.get_command(context, name) if re.fullmatch("[a-z-]+", name) else None for name in names]
            assert None not in found, f"refine {' '.join(words)}"
            command = found[0]
        known = {option for parameter in command.params for option in parameter.opts}
        given = {word.split("=")[0] for word in rest if re.match(r"--?[a-zA-Z]", word)}
        assert given <= known | {"--help"}, f"refine {' '.join(words)}"


def test_every_make_target_exists(page):
    makefile = (CHECKOUT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = {name for code in _code(page) for name in re.findall(r"(?:^|&& )make ([a-z-]+)", code, re.MULTILINE)}
    assert named <= targets


def test_every_page_is_in_the_index():
    index = (CHECKOUT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in CHECKOUT.glob("docs/*.md")} - {"README.md"}
    assert pages - set(re.findall(r"\]\(([\w-]+\.md)", index)) == set()


def test_the_glossary_is_linked_from_every_page():
    pages = [CHECKOUT / "README.md", *CHECKOUT.glob("docs/*.md")]
    missing = [path.name for path in pages if "glossary.md)" not in path.read_text(encoding="utf-8")]
    assert set(missing) <= {"glossary.md"}


def test_nothing_cites_a_document_that_is_not_here():
    files = [path for kind in ("*.md", "*.yaml", "*.py") for path in CHECKOUT.glob(f"*/**/{kind}")]
    files = [path for path in [*PAGES, *CHECKOUT.glob("*.yaml"), *files] if path != Path(__file__).resolve()]
    ours = [path for path in files if path.relative_to(CHECKOUT).parts[0] in (*ROOTS.split("|"), path.name)]
    citing = [path for path in ours if ABSENT.search(path.read_text(encoding="utf-8"))]
    assert sorted({path.relative_to(CHECKOUT).as_posix() for path in citing}) == []
