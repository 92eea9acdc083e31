"""The version of the raw text: the one that data.dvc records, and the one that is in data/.

DVC identifies a folder by the md5 of the list of its files' md5s. That shows a difference, but not which file differs;
and `dvc repro` silently takes an altered data/ for a new version. So `refine data fetch` adds to data.dvc, under `meta`
(which DVC leaves alone), the md5 of each file and of the folder, and what they were made from.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from refine.errors import DataError, ServiceError, reason
from refine.paths import is_hidden, visible_files
from refine.system.files import write_text
from refine.system.readers import in_form, read_yaml

DATA = Path("data")
RECORD = Path("data.dvc")
REMEDY = (
    "`refine data fetch --replace` restores the recorded text, `refine data accept` keeps the files as a new version"
)


@dataclass(frozen=True)
class Version:
    """A version of a folder. md5: DVC's, ending in .dir. files: name -> md5 (empty: unknown). made: their origins.

    listed: DVC's own md5 in data.dvc. It differs from `md5` after DVC took altered files for a new version.
    """

    md5: str
    files: dict[str, str] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)
    listed: str | None = None


def of(folder: str | Path) -> Version:
    """The version of the files in `folder` that are not hidden, with the md5 that DVC computes. Raises DataError if
    there is no folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}/ is missing: run `refine data fetch`, or `dvc pull` if the project has a remote")
    files = {path.relative_to(folder).as_posix(): _md5(path) for path in visible_files(folder)}
    entries = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    return Version(hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir", files)


def require_folder(folder: Path = DATA) -> None:
    """Raises DataError if `folder` is a symbolic link, which DVC cannot version."""
    if folder.is_symlink():
        raise DataError(
            f"{folder} is a symbolic link, which DVC does not version: make it a folder; to keep the text on another "
            "disk, put DVC's cache there (`dvc cache dir FOLDER`, `dvc config cache.type symlink`)"
        )


def leave_out_hidden_files(folder: Path = DATA) -> None:
    """If there are hidden files in `folder` (macOS writes .DS_Store), tell DVC in .dvcignore not to version them."""
    line, file = f"/{folder.as_posix()}/**/.*", Path(".dvcignore")
    known = file.read_text(encoding="utf-8") if file.exists() else ""
    if line not in known.splitlines() and any(is_hidden(path.relative_to(folder)) for path in folder.rglob("*")):
        write_text(file, f"{known.rstrip()}\n{line}\n".lstrip())


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def recorded(record: str | Path = RECORD) -> Version | None:
    """The version that data.dvc records; None if there is no data.dvc. Raises DataError if it is not DVC's."""
    record = Path(record)
    if not record.exists():
        return None
    what, advice = "what `dvc add` writes", "restore it with git, or remove it and fetch"
    try:
        content = read_yaml(record, what)
    except DataError as error:
        raise DataError(f"{record}: not {what} ({reason(error)}); {advice}") from None
    with in_form(record, what, advice=advice):
        listed, meta = _text(content["outs"][0]["md5"]), content.get("meta")
        if not meta:  # versioned by `dvc add` alone
            return Version(listed, listed=listed)
        files, made = ({_text(k): _text(v) for k, v in meta[name].items()} for name in ("files", "made"))
        return Version(_text(meta["md5"]), files, made, listed)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, found {reason(repr(value), 40)}")
    return value


def differences(found: Version, expected: Version, where: str = "data") -> list[str]:
    """The differences, a phrase for each file. Empty if there are none."""
    if found.md5 == expected.md5:
        return []
    if not expected.files:
        return [f"{where}/ is {found.md5}, data.dvc says {expected.md5}"]
    phrases = []
    for name in sorted({*found.files, *expected.files}):
        if name not in found.files:
            phrases.append(f"{where}/{name} is missing")
        elif name not in expected.files:
            phrases.append(f"{where}/{name} is not part of that version")
        elif found.files[name] != expected.files[name]:
            phrases.append(f"{where}/{name} differs")
    return phrases


def require_recorded(folder: Path, names: Iterable[str], record: Path = RECORD) -> None:
    """Check the files of data/ that a stage reads against data.dvc. In any other folder they only have to exist.

    Raises DataError: a file is missing, or differs from data.dvc.
    """
    expected = recorded(record) if folder.resolve() == (record.parent / DATA).resolve() else None
    for name in names:
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path} is missing: run `refine data fetch`, or `dvc pull` if the project has a remote")
        if expected is not None and expected.files and _md5(path) != expected.files.get(name):
            raise DataError(f"{path} is not what {record} records; {REMEDY}")


def record(made: dict[str, str], folder: Path = DATA, record: Path = RECORD) -> Version:
    """Version `folder` with `dvc add` and add `meta` to data.dvc. Raises DataError if DVC refuses."""
    leave_out_hidden_files(folder)
    try:
        run_dvc("add", "--quiet", str(folder))
    except ServiceError as error:
        raise DataError(f"{folder}/ is written but not versioned: {error}") from None
    version = of(folder)
    content = read_yaml(record, "what `dvc add` writes")
    content["meta"] = {"md5": version.md5, "made": made, "files": version.files}
    write_text(record, yaml.safe_dump(content, sort_keys=False))
    return version


def run_dvc(*arguments: str) -> str:
    """Run DVC in the current folder. Returns the last line it prints. Raises ServiceError with its reason."""
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        why = reason((done.stderr or "no reason given").replace("ERROR: ", "", 1), 400)
        raise ServiceError(f"`dvc {' '.join(arguments)}` failed: {why}")
    return next(reversed(done.stdout.strip().splitlines()), "")
