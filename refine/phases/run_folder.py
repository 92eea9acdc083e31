"""The folder of one run: what it was made from, who writes to it, and what came out.

OUTPUT/identity.json  settings and hashes of the inputs; a run with others never goes on from what lies here
OUTPUT/checkpoint-N/  state after step N        OUTPUT/metrics.jsonl  every logged row
OUTPUT/model/         the final model           OUTPUT/result.json    the record, written last
OUTPUT/reward_histograms.{csv,png}  how the rewards of held-out rollouts were spread, validation by validation
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refine.errors import SettingError, TrainingError
from refine.system.files import why_not_writable, write_json
from refine.system.locks import Locked, hold
from refine.training import checkpoints

IDENTITY, RESULT, MODEL, LOCK = "identity.json", "result.json", "model", ".lock"
HOW = ("sequences_per_pass", "gradient_checkpointing")


def finished(output: Path) -> dict[str, Any] | None:
    """The record of a finished run in `output`, or None."""
    try:
        record = json.loads((output / RESULT).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return record if checkpoints.is_whole(output / MODEL) else None


def check(output: Path, identity: dict[str, Any]) -> None:
    """Make sure that `output` can be written to and is free, or this run's own.

    Raises SettingError: it cannot be written to. TrainingError: it is another run's.
    """
    if said := why_not_writable(output):
        raise SettingError(f"cannot write to the output folder {output}: {said}; choose another --output")
    file = output / IDENTITY
    if not file.exists():
        if any(output.glob(f"{checkpoints.PREFIX}*")) or (output / MODEL).exists():
            raise TrainingError(f"{output} holds checkpoints but no {IDENTITY}: choose another --output")
        return
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise TrainingError(f"{file} is damaged: remove {output}, or choose another --output") from None
    known, wanted = decisive(known), decisive(json.loads(json.dumps(identity)))
    if known != wanted:
        raise TrainingError(
            f"{output} holds a run with {_difference(known, wanted)}: choose another --output, or remove it to start "
            "anew"
        )


def decisive(identity: dict[str, Any]) -> dict[str, Any]:
    """`identity` without the settings that change how a result is computed and not what it is (to rounding), such as
    the number of processes: they may be changed to fit the memory there is, and a run goes on."""
    settings = {name: value for name, value in identity.get("settings", {}).items() if name not in HOW}
    return {**identity, "settings": settings} if "settings" in identity else identity


def claim(output: Path, identity: dict[str, Any]) -> None:
    """Write down whose folder `output` is, before anything else lies there."""
    if not (output / IDENTITY).exists():
        write_json(output / IDENTITY, identity)


def _difference(known: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The first settings or inputs in which two identities differ."""
    before, now = _flat(known), _flat(wanted)
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    told = [
        f"other {name}" if "hash" in name else f"{name} {before.get(name)!r} (now {now.get(name)!r})"
        for name in names[:3]
    ]
    return ", ".join(told) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat


@contextlib.contextmanager
def locked(output: Path, patience: float = 15.0) -> Iterator[None]:
    """Hold `output` for this process; the system lets go of it when the process ends, however it ends.

    Waits `patience` seconds, as a killed run's process may still be going. Raises TrainingError: another one has it.
    """
    try:
        with hold(output / LOCK, str(os.getpid()), patience):
            yield
    except Locked as error:
        raise TrainingError(
            f"{output} is being trained into by process {error.holder}: wait for it, or end it"
        ) from None
