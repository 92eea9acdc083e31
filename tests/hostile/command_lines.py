"""Bad command lines of every verb, made from their options by a seeded mutator.

No value names a place outside of the current folder, where a verb could write. The verbs that start, stop or ask
servers get an option that click refuses, or --help; the two that would work for minutes get one that our code refuses.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache

import click

from refine.cli.main import cli

SERVERS = ("up", "down", "worker", "status", "deploy", "doctor", "data push", "data pull", "data fetch", "data accept")
LONG = {
    "demo": (("--model", "nowhere/x"), ("--output", "file/x.png"), ("--output", "x.xyz"), ("--length", "1")),
    "train tiny": (("-S", "nothing.such=1"), ("--params", "nowhere.yaml"), ("--output", "file/x"), ("-S", "seed=nan")),
}
STRANGE = (
    "", " ", "-", "--", "nope", "0", "-1", "1", "2.5", "1e9", "1e400", "nan", "inf", "9" * 400, "100000000000",
    "\u00b2", ",", "1,,2", "[]", "{}", "[" * 200, "null", "file", "folder", "folder/new", "nowhere/x", "~nobody/x",
    "a\nb", "\udcff", "\U0001f98a", "x" * 5000, "models:/", "models:/x/y/z", "s3://", "http://", "sqlite://", "%s",
    "$HOME", "*", "sample/delta_net", "file/x", "cuda:99", "mid", "sft", "refine", "x.png", "x.xyz",
)  # fmt: skip
OVERRIDES = (
    "seed", "seed=", "=1", "seed=x", "seed=[1", "seed=-1", "seed=1e30", "data=1", "training=null", "training.mid=[]",
    "training.mid.steps=nan", "training.mid.steps=-5", "model.checkpoint=[]", "needles.lengths=[]", "needles.lengths=x",
    "documents.sequence_length=0", "tokenizer.vocabulary=1e12", "nothing.such=1", "a.b.c.d", "data.train.0.kind=x",
    "registry.metric=..", "seed=\udcff", "seed={a: &a [*a]}", "training.mid.objective.positions=1e13",
)  # fmt: skip


@cache
def verbs() -> dict[str, click.Command]:
    """Every verb and subcommand, by its words."""
    return dict(_below(cli, ()))


def _below(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield " ".join(words), command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        if (found := command.get_command(context, name)) is not None:
            yield from _below(found, (*words, name))


def bad_line(verb: str, chance: random.Random) -> list[str]:
    """The arguments of a command line of `verb`: its required options and some others, most with strange values."""
    parameters = verbs()[verb].params
    line = verb.split()
    for parameter in parameters:
        if (parameter.required and chance.random() < 0.9) or chance.random() < 0.25:
            line += _given(parameter, chance)
    line += chance.choice(([], [], [], ["--nope"], ["stray"], ["-S"], ["--help"]))
    if verb in SERVERS:
        line.append(chance.choice(("--nope", "--help", "--nope=1", "-Q")))
    return line + list(chance.choice(LONG[verb])) if verb in LONG else line


def _given(parameter: click.Parameter, chance: random.Random) -> list[str]:
    if isinstance(parameter, click.Argument):
        return [chance.choice(STRANGE)]
    name = chance.choice(parameter.opts)
    if "--set" in parameter.opts:
        return [name, chance.choice(OVERRIDES)]
    if getattr(parameter, "is_flag", False):
        return [name]
    if isinstance(parameter.type, click.Choice) and chance.random() < 0.5:
        return [name, chance.choice(list(parameter.type.choices))]
    value = "params.yaml" if name == "--params" and chance.random() < 0.6 else chance.choice(STRANGE)
    return [name, value] if chance.random() < 0.9 else [f"{name}={value}"]
