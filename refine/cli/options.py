"""The options that several verbs share. Each is declared once, so its name, short form, type and help never differ.

A verb chooses only the default. `shown` is what --help prints for a default that the verb computes itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from refine.settings.base import LARGEST_SEED

PATH = click.Path(path_type=Path)
PARAMS = Path("params.yaml")

Decorator = Callable[[Any], Any]


def settings(params: Path | None = PARAMS) -> Decorator:
    """--params and -S/--set, for a verb that reads a settings file. `None` makes --params required."""
    declared = (
        click.option(
            "--params", type=PATH, default=params, required=params is None, show_default=True, help="Settings file."
        ),
        click.option(
            "-S",
            "--set",
            "overrides",
            multiple=True,
            metavar="SECTION.KEY=VALUE",
            help="Override a setting; repeatable.",
        ),
    )

    def decorate(command: Any) -> Any:
        for option in reversed(declared):
            command = option(command)
        return command

    return decorate


def data(default: Path) -> Decorator:
    """--data: the folder that a verb reads its text, token sequences or prompts from."""
    return click.option("--data", type=PATH, default=default, show_default=True, help="Folder of the data to read.")


def output(shown: str | None = None) -> Decorator:
    """--output: the file or folder that a verb writes. Without `shown` the option is required."""
    return click.option(
        "--output", type=PATH, required=shown is None, show_default=shown or False, help="File or folder to write."
    )


def device() -> Decorator:
    """--device: where tensors lie."""
    return click.option(
        "--device", show_default="cuda if available", help="Device, by its PyTorch name, for example cuda:1."
    )


def seed(default: int) -> Decorator:
    """--seed: the seed of every random draw of the verb."""
    return click.option(
        "--seed",
        type=click.IntRange(0, LARGEST_SEED),
        default=default,
        show_default=True,
        help="Seed of the random draws.",
    )


def pool(default: str | None, shown: str | bool = True) -> Decorator:
    """--pool: Prefect's work pool."""
    return click.option("--pool", default=default, show_default=shown, help="Prefect's work pool for the runs.")


def experiment(shown: str) -> Decorator:
    """--experiment: the MLflow experiment that a verb reads."""
    return click.option("--experiment", show_default=shown, help="MLflow experiment to read.")
