"""An option that several verbs have is the same in each of them."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from refine.cli.main import VERBS, cli

# A phase has its own arms. Only `compare` takes a registered model's name; the others take a checkpoint.
DIFFERENT = {"--arm", "--model"}


def _commands() -> Iterator[tuple[str, click.Command]]:
    """Every verb and every verb below it, by the words that call it."""
    for verb, (place, _) in VERBS.items():
        module, name = place.split(":")
        command = getattr(importlib.import_module(module), name)
        if isinstance(command, click.Group):
            yield from ((f"{verb} {inner}", below) for inner, below in command.commands.items())
        else:
            yield verb, command


COMMANDS = dict(_commands())


def _options(command: click.Command) -> dict[str, click.Option]:
    return {max(one.opts, key=len): one for one in command.params if isinstance(one, click.Option)}


def _declaration(option: click.Option) -> tuple:
    return (tuple(option.opts), option.help, option.type.to_info_dict(), option.metavar, option.multiple)


USED = Counter(name for command in COMMANDS.values() for name in _options(command))
SHARED = {name for name, times in USED.items() if times > 1} - DIFFERENT


def test_the_shared_options_are_found():
    assert {"--params", "--set", "--data", "--output", "--seed", "--pool", "--experiment"} <= SHARED


@pytest.mark.parametrize("name", sorted(SHARED))
def test_an_option_has_the_same_names_help_and_type_in_every_verb(name):
    having = {verb: _options(command) for verb, command in COMMANDS.items() if name in _options(command)}
    found = {verb: _declaration(options[name]) for verb, options in having.items()}
    assert len({str(declaration) for declaration in found.values()}) == 1, found


@pytest.mark.parametrize("verb", [verb for verb, command in COMMANDS.items() if "--params" in _options(command)])
def test_every_verb_with_a_settings_file_can_override_its_settings(verb):
    assert _options(COMMANDS[verb])["--set"].opts == ["-S", "--set"]


def test_help_shows_the_defaults_that_a_verb_computes():
    shown = CliRunner().invoke(cli, ["evaluate", "--help"], terminal_width=200).output
    assert "(results/evaluation/MODEL)" in shown and "[default: prepared]" in shown and "params.yaml" in shown
