"""Runs DVC's data stages before a deployed experiment begins."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from refine import paths
from refine.errors import DataError, SettingError
from refine.settings import Settings, load
from refine.system.locks import stage_lock
from refine.system.processes import ProcessFailed, run_in_own_process
from refine.system.readers import mapping, read_yaml

EXPERIMENT = "experiment"  # the stage that runs the flow
DATA_SECTIONS = ("data", "tokenizer", "documents", "needles", "questions")


def prepare(params: str, settings: Settings, say: Callable[[str], None]) -> None:
    """Run `dvc repro` for every stage except the experiment. Inside a DVC stage it does nothing: DVC has run them.

    `say` gets a line at the end, and one while another process runs the data stages.
    Raises DataError: no dvc.yaml, or a stage fails. SettingError: `settings` has other data sections than `params`.
    """
    if "DVC_STAGE" in os.environ:
        return
    check_same_data(params, settings)
    command = [sys.executable, "-m", "dvc", "repro", *(name for name in stages() if name != EXPERIMENT)]
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    # DVC refuses a second repro in the same folder, so runs take turns.
    with stage_lock(paths.runs() / "data-stages", "data stages", say):
        try:
            run_in_own_process(command, environment={"PATH": programs}, name="dvc repro")
        except ProcessFailed as error:
            line = next((line for line in reversed(error.tail) if "ERROR" in line), str(error))
            raise DataError(f"the data stages failed: {line.removeprefix('ERROR: ')}") from None
    say("data stages: up to date")


def stages(file: Path = Path("dvc.yaml")) -> list[str]:
    """The names of the stages in dvc.yaml. Raises DataError: it is missing, or not DVC's."""
    if not file.exists():
        raise DataError(
            f"no dvc.yaml in {Path.cwd()}: run a deployed experiment in the project's folder (REFINE_CHECKOUT)"
        )
    what = "DVC's stages"
    return list(mapping(read_yaml(file, what).get("stages"), f"{file}: stages", what))


def check_same_data(params: str, settings: Settings) -> None:
    """Raises SettingError: `settings` has other data sections than the file `params`, which DVC prepares data from."""
    in_file = load(params)
    for section in DATA_SECTIONS:
        if getattr(settings, section) != getattr(in_file, section):
            raise SettingError(
                f"section {section!r} is overridden, but the data is prepared from {params}: change the file, or use "
                "`dvc exp run -S`, which prepares data for its own settings"
            )
