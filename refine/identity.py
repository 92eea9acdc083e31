"""What produced a record: git commit, hash of the settings, hash of the data, hash of the code, seed.

Every MLflow run, model version and result carries one Identity, so that its figures can be traced back to what produced
them. A part that cannot be determined (no git, no data.dvc) is "unknown"; it is never left out.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from refine.errors import reason
from refine.paths import visible_files
from refine.system.digests import sha256_of
from refine.system.readers import in_form, read_yaml

UNKNOWN = "unknown"
DIGITS = 16  # hexadecimal digits of a hash: 64 bits, short enough for a folder's name
# What a result depends on. Files that the pipeline itself writes (dvc.lock, results/) do not make a commit dirty.
SOURCES = ("refine", "flows", "params.yaml", "dvc.yaml", "data.dvc", "pyproject.toml", ".ci/pins.txt")
PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Identity:
    """The code, settings, data and seed that produced a record."""

    commit: str
    dirty: bool
    params: str
    data: str
    code: str
    seed: int

    def tags(self) -> dict[str, str]:
        """The identity as MLflow tags. MLflow's pages show `mlflow.source.git.commit`."""
        tags = {f"identity.{name}": str(value).lower() for name, value in asdict(self).items()}
        return tags if self.commit == UNKNOWN else {**tags, "mlflow.source.git.commit": self.commit}

    @property
    def known(self) -> bool:
        """Whether code and data can be traced: a clean commit and a data version."""
        return self.commit != UNKNOWN and not self.dirty and self.data != UNKNOWN


def identify(settings: Any, checkout: str | Path = ".") -> Identity:
    """The identity of a run with `settings` (a pydantic Settings) started in the folder `checkout`."""
    commit, dirty = git_state(checkout)
    return Identity(
        commit=commit,
        dirty=dirty,
        params=hash_of(settings.model_dump(mode="json")),
        data=data_version(Path(checkout) / "data.dvc"),
        code=code_hash(),
        seed=settings.seed,
    )


def hash_of(value: Any) -> str:
    """Hash of plain data (anything JSON can hold). The order of mapping keys does not change it."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names: {"a": {"b": 1}} is {"a.b": 1}."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def hash_of_files(*paths: str | Path) -> str:
    """Hash of the contents of files and folders, and of the file names inside the folders. Where they lie does not
    change it, and neither do hidden files in the folders. Raises FileNotFoundError for a path that does not exist.
    """
    total = hashlib.sha256()
    for name, file in _named_files(paths):
        total.update(f"{name}\0{sha256_of(file)}\n".encode())
    return total.hexdigest()[:DIGITS]


def code_hash(*rooms: str, package: str | Path = PACKAGE) -> str:
    """Hash of the Python files of rooms of `refine` (folders or single modules). Without rooms: of all files."""
    root = Path(package)
    found = [_room(root, room) for room in rooms] if rooms else [root]
    files = sorted(file for place in found for file in ([place] if place.is_file() else visible_files(place, "*.py")))
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return total.hexdigest()[:DIGITS]


def data_version(tracked: str | Path = "data.dvc") -> str:
    """The raw data's version: the md5 in data.dvc, or "unknown" without that file. Raises DataError: it is not what
    DVC writes."""
    if not Path(tracked).exists():
        return UNKNOWN
    what = "what `dvc add` writes"
    content = read_yaml(tracked, what)
    with in_form(tracked, what, advice="restore it with git, or remove it and fetch"):
        (out,) = content["outs"]
        if not isinstance(out["md5"], str):
            raise TypeError(f"expected text as md5, found {reason(repr(out['md5']), 40)}")
        return out["md5"]


def git_state(checkout: str | Path = ".") -> tuple[str, bool]:
    """The commit checked out in `checkout`, and whether SOURCES differ from it (`dirty`).

    ("unknown", True) without git, without a repository, or before the first commit.
    """
    commit = _git(checkout, "rev-parse", "HEAD")
    if commit is None:
        return UNKNOWN, True
    changes = _git(checkout, "status", "--porcelain", "--untracked-files=normal", "--", *SOURCES)
    return commit, changes != ""


def committed(file: str | Path) -> str | None:
    """The text of `file` in the commit that is checked out; None without git, or if the commit has no such file."""
    file = Path(file)
    return _git(file.parent, "show", f"HEAD:./{file.name}")


def _git(checkout: str | Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=checkout, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _room(root: Path, room: str) -> Path:
    place = root / room if (root / room).is_dir() else root / f"{room}.py"
    if not place.exists():
        raise FileNotFoundError(f"no room {room!r} in {root}")
    return place


def _named_files(paths: Iterable[str | Path]) -> Iterator[tuple[str, Path]]:
    for path in map(Path, paths):
        if path.is_dir():
            for file in visible_files(path):
                yield file.relative_to(path).as_posix(), file
        else:
            yield path.name, path
