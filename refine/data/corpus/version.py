"""The version of the raw text: what data.dvc records of data/, and what data/ is.

DVC's identity of a folder is the md5 of the list of its files' md5s. It says that something differs, not what; and
`dvc repro` takes an altered data/ for a new version, without a word. So data.dvc carries, under `meta` (which DVC
leaves alone), what `refine data fetch` wrote: the md5 of each file, of the folder, and what it was made from.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from refine.errors import DataError, ServiceError, reason
from refine.system.files import write_text

DATA = Path("data")
RECORD = Path("data.dvc")
REMEDY = "`refine data fetch --replace` brings the recorded text back, `refine data accept` keeps this as a new version"


@dataclass(frozen=True)
class Version:
    """A folder of data. md5: DVC's, with its .dir. files: name -> md5 (empty: not known). made: what they come from.

    listed: the md5 that data.dvc gives to DVC; another than `md5` where DVC took altered files for a new version.
    """

    md5: str
    files: dict[str, str] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)
    listed: str | None = None


def of(folder: str | Path) -> Version:
    """The version of the files in `folder`, as DVC counts it. Raises DataError if there is no such folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}/ is missing: run `refine data fetch`, or `dvc pull` if the project has a remote")
    files = {path.relative_to(folder).as_posix(): _md5(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    entries = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    return Version(hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir", files)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def recorded(record: str | Path = RECORD) -> Version | None:
    """The version that data.dvc records; None if there is no data.dvc. Raises DataError if it cannot be understood."""
    record = Path(record)
    if not record.exists():
        return None
    try:
        content: dict[str, Any] = yaml.safe_load(record.read_text(encoding="utf-8"))
        listed, meta = content["outs"][0]["md5"], content.get("meta")
        if not meta:  # versioned by `dvc add` alone
            return Version(listed, listed=listed)
        return Version(meta["md5"], dict(meta["files"]), dict(meta["made"]), listed)
    except (yaml.YAMLError, KeyError, IndexError, TypeError, AttributeError, OSError):
        raise DataError(f"{record}: not what `dvc add` writes; restore it with git, or remove it and fetch") from None


def differences(found: Version, expected: Version, where: str = "data") -> list[str]:
    """What differs, a phrase for each file; empty if nothing does."""
    if found.md5 == expected.md5:
        return []
    if not expected.files:
        return [f"{where}/ is {found.md5}, data.dvc says {expected.md5}"]
    said = []
    for name in sorted({*found.files, *expected.files}):
        if name not in found.files:
            said.append(f"{where}/{name} is missing")
        elif name not in expected.files:
            said.append(f"{where}/{name} is not part of it")
        elif found.files[name] != expected.files[name]:
            said.append(f"{where}/{name} differs")
    return said


def require_recorded(folder: Path, names: Iterable[str], record: Path = RECORD) -> None:
    """Check the files of data/ that a stage reads against data.dvc. Another folder than data.dvc's is not checked.

    Raises DataError: one is missing, or is not what data.dvc records.
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
    try:
        run_dvc("add", "--quiet", str(folder))
    except ServiceError as error:
        raise DataError(f"{folder}/ is written but not versioned: {error}") from None
    version = of(folder)
    content = yaml.safe_load(record.read_text(encoding="utf-8"))
    content["meta"] = {"md5": version.md5, "made": made, "files": version.files}
    write_text(record, yaml.safe_dump(content, sort_keys=False))
    return version


def run_dvc(*arguments: str) -> str:
    """Run DVC in the current folder. Returns the last line it prints. Raises ServiceError with its reason."""
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        why = reason(without_password(done.stderr or "no reason given").replace("ERROR: ", "", 1), 400)
        raise ServiceError(f"`dvc {' '.join(arguments)}` failed: {why}")
    return next(reversed(done.stdout.strip().splitlines()), "")


def without_password(text: str) -> str:
    """`text` without the user and password that addresses in it name: "https://me:secret@host" -> "https://host"."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)
