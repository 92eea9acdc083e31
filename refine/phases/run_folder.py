"""The folder of one run: its identity, its lock, its checkpoints and its result.

OUTPUT/identity.json  settings and hashes of the inputs; a run with another identity never resumes here
OUTPUT/checkpoint-N/  state after step N        OUTPUT/metrics.jsonl  every logged row
OUTPUT/model/         the final model           OUTPUT/result.json    the record, written last, with its own hash and
                                                                      that of model/complete.json
OUTPUT/reward_histograms.{csv,png}  distribution of the rewards of held-out rollouts, per validation
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refine.errors import SettingError, TrainingError, reason
from refine.identity import flat, hash_of
from refine.system.digests import sha256_of
from refine.system.files import why_not_writable, write_json
from refine.system.locks import Locked, hold
from refine.system.readers import in_form, mapping, read_json
from refine.training import checkpoints

IDENTITY, RESULT, MODEL, LOCK = "identity.json", "result.json", "model", ".lock"
RECORD = "the record of a run"
EXECUTION_SETTINGS = ("sequences_per_pass", "gradient_checkpointing")  # they change a result only by rounding
LATER = {"freeze": "none"}  # settings that older records lack, with the value that they had


log = logging.getLogger(__name__)


def write_result(output: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Write OUTPUT/result.json. Returns the record with the SHA-256 of the model's manifest, which holds those of the
    model's files, and with its own hash."""
    manifest = output / MODEL / checkpoints.MANIFEST
    record = {**record, "files": {manifest.relative_to(output).as_posix(): sha256_of(manifest)}}
    record["record_hash"] = hash_of(record)
    write_json(output / RESULT, record)
    return record


def finished(output: Path) -> dict[str, Any] | None:
    """The record of a finished run in `output`, or None. None, with a warning, if the record or the model is damaged:
    the run then goes on from its last complete checkpoint."""
    file = output / RESULT
    if not file.exists():
        return None
    try:
        record = read_json(file, RECORD, TrainingError)
        with in_form(file, RECORD, TrainingError):
            _check_record(record, output)
    except (TrainingError, OSError) as error:
        log.warning("the run in %s does not count as finished: %s", output, reason(error, 400))
        return None
    return record


def _check_record(record: dict[str, Any], output: Path) -> None:
    """Raises ValueError or TypeError: `record` was not written by `write_result`, or is not of the model in `output`.
    Older records have no hashes."""
    numbers = {name: record[name] for name in ("steps", "tokens", "seconds")}
    for name, value in {
        **mapping(record["metrics"], f"{output / RESULT}: metrics", "scores", TrainingError),
        **numbers,
    }.items():
        if not (value is None and name not in numbers) and (
            isinstance(value, bool) or not isinstance(value, int | float)
        ):
            raise TypeError(f"{reason(name, 40)} is {reason(repr(value), 40)}: expected a number")
    written = {name: value for name, value in record.items() if name != "record_hash"}
    if record.get("record_hash", hash_of(written)) != hash_of(written):
        raise ValueError("its values are not those that its record_hash was made from")
    manifest = output / MODEL / checkpoints.MANIFEST
    known = mapping(record.get("files", {}), f"{output / RESULT}: files", "hashes", TrainingError).get(
        manifest.relative_to(output).as_posix()
    )
    if known is not None and known != sha256_of(manifest):
        raise ValueError(f"{manifest} has other bytes than when the run ended")
    if found := checkpoints.damage(output / MODEL):
        raise ValueError(found)


def check(output: Path, identity: dict[str, Any]) -> None:
    """Check that `output` can be written to, and that it is empty or holds the run with this identity.

    Raises SettingError: it cannot be written to. TrainingError: it holds another run.
    """
    if obstacle := why_not_writable(output):
        raise SettingError(f"cannot write to the output folder {output}: {obstacle}; choose another --output")
    file = output / IDENTITY
    if not file.exists():
        if any(output.glob(f"{checkpoints.PREFIX}*")) or (output / MODEL).exists():
            raise TrainingError(f"{output} holds checkpoints but no {IDENTITY}: choose another --output")
        return
    try:
        known = read_json(file, "the identity of a run", TrainingError)
    except TrainingError as error:
        raise TrainingError(f"damaged: {error}: remove {output}, or choose another --output") from None
    known, wanted = without_execution_settings(known), without_execution_settings(json.loads(json.dumps(identity)))
    if known != wanted:
        raise TrainingError(
            f"{output} holds a run with {_difference(known, wanted)}: choose another --output, or remove this folder"
        )


def without_execution_settings(identity: dict[str, Any]) -> dict[str, Any]:
    """`identity` without the settings that change only how a result is computed (a run that ran out of memory can
    change them and resume), and without later ones at the value of older runs."""
    settings = identity.get("settings")
    if not isinstance(settings, dict):
        return identity
    kept = {
        name: value for name, value in settings.items() if name not in EXECUTION_SETTINGS and LATER.get(name) != value
    }
    return {**identity, "settings": kept}


def write_identity(output: Path, identity: dict[str, Any]) -> None:
    """Write OUTPUT/identity.json if it is missing. It comes before any other file of the run."""
    if not (output / IDENTITY).exists():
        write_json(output / IDENTITY, identity)


def _difference(known: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The first three settings or inputs that differ, with both values."""
    before, now = flat(known), flat(wanted)
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    shown = [
        f"other {name}" if "hash" in name else f"{_value(name, before)} (now {_shown(now.get(name))})"
        for name in names[:3]
    ]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _value(name: str, of: dict[str, Any]) -> str:
    return f"{reason(name)} {_shown(of.get(name))}"


def _shown(value: Any) -> str:
    return reason(repr(value), 80)


@contextlib.contextmanager
def locked(output: Path, patience: float = 15.0) -> Iterator[None]:
    """Lock `output` for this process. The operating system releases the lock when the process ends, however it ends.

    Waits `patience` seconds, because the process of a killed run may still be ending. Raises TrainingError: another
    process holds the lock.
    """
    try:
        with hold(output / LOCK, str(os.getpid()), patience):
            yield
    except Locked as error:
        raise TrainingError(f"process {error.holder} is training into {output}: wait for it, or end it") from None
