"""The options that several verbs share. Each is declared once, so its name, short form, type and help never differ.

A verb chooses only the default. `shown` is what --help prints for a default that the verb computes itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from refine.errors import SettingError, reason
from refine.settings.base import LARGEST_SEED
from refine.system.files import why_not_writable
from refine.system.names import check_name

MOST_TOKENS, MOST_SAMPLES, MOST_ROWS = 10**8, 10**7, 10**6
SEED = click.IntRange(0, LARGEST_SEED)
PICTURES = (".png", ".svg", ".pdf")
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


def chat() -> Decorator:
    """--chat: prompts of an instruct model."""
    return click.option(
        "--chat", is_flag=True, help="Prompts in the tokenizer's chat template, each as the user's turn."
    )


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


def check_device(name: str | None) -> None:
    """Raises SettingError unless tensors can lie on the device `name`: before the work, not after it."""
    if name is None:
        return
    import torch

    try:
        if torch.empty(1, device=name).is_meta:
            raise RuntimeError("it holds no values")
    except Exception as error:  # torch raises RuntimeError, AssertionError, ImportError or NotImplementedError
        raise SettingError(f"--device {name}: no such device here ({reason(error)})") from None


def check_picture(path: Path | None, option: str) -> None:
    """Raises SettingError: the name's ending is that of no picture, a folder has the name, or it cannot be written."""
    if path is None:
        return
    if path.suffix not in PICTURES:
        raise SettingError(f"{option} {path}: expected a name that ends in {', '.join(PICTURES)}")
    check_file(path, option)


def check_file(path: Path, option: str) -> None:
    """Raises SettingError: a folder has the name of the file to write, or its folder cannot be written."""
    if path.is_dir():
        raise SettingError(f"{option} {path}: is a folder; expected the name of a file")
    check_folder(path.parent, option)


def check_folder(folder: Path, option: str) -> None:
    """Raises SettingError: nothing can be written to `folder`."""
    if obstacle := why_not_writable(folder):
        raise SettingError(f"{option}: {folder} cannot be written to ({obstacle}); name another place")


def seed(default: int) -> Decorator:
    """--seed: the seed of every random draw of the verb."""
    return click.option(
        "--seed",
        type=SEED,
        default=default,
        show_default=True,
        help="Seed of the random draws.",
    )


def pool(default: str | None, shown: str | bool = True) -> Decorator:
    """--pool: Prefect's work pool."""
    return click.option("--pool", default=default, show_default=shown, help="Prefect's work pool for the runs.")


def experiment(shown: str) -> Decorator:
    """--experiment: the MLflow experiment that a verb reads."""
    return click.option("--experiment", callback=experiment_name, show_default=shown, help="MLflow experiment to read.")


def experiment_name(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """A callback of click's. Raises SettingError: the name is a path, or too long."""
    check_name(value, "an experiment")
    return value


def model_name(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """The same for the name of a registered model."""
    check_name(value, "a registered model")
    return value
