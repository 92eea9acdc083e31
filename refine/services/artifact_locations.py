"""Before `refine up` starts MLflow's server: give experiments that were made without a server locations that the server
serves, so that other machines can fetch their models.

An experiment that was made without a server keeps its files at an address of this machine's files, which means another
folder on every machine. The server serves the same folder as `mlflow-artifacts:/`. All addresses in MLflow's SQLite
file change in one transaction; commands without a server find the files by `refine.tracking.served_artifacts`.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from refine.errors import ServiceError, reason
from refine.services import environment
from refine.system.addresses import local_path
from refine.tracking.model_storage import from_store
from refine.tracking.served_artifacts import SCHEME, keep_store, store_of

PATIENCE = 30.0  # seconds that another process may keep the database locked
# Where MLflow's tables hold addresses of files.
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)
NEEDED = {table for table, _ in ADDRESSES}
READY = 2  # status of a logged model whose files are complete


@dataclass
class Root:
    """A folder or address below which experiments keep their files. bound: other machines cannot read it. runs, models:
    their paths relative to it."""

    address: str
    bound: bool
    experiments: list[str] = field(default_factory=list)
    runs: set[str] = field(default_factory=set)
    models: set[str] = field(default_factory=set)


def use_store(database: Path, store: str, say: Callable[[str], None]) -> None:
    """Let the server that is about to start keep the files of `database`, MLflow's SQLite file, in `store`, a folder's
    file:// address or s3://... .

    Changes all addresses that other machines could not read, and records the store. `say` gets a line for each change.
    Raises ServiceError, and changes nothing: an experiment has files that are not in `store`, a bucket does not answer,
    or the database stays locked or is damaged.
    """
    moved: list[str] = []
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=PATIENCE, isolation_level=None)) as connection:
            if _tables(connection) >= NEEDED:  # else MLflow's server says what is wrong with its tables
                moved = _move(connection, database, store, say)
    except sqlite3.Error as error:
        raise ServiceError(
            f"MLflow's database {database} cannot be used: {reason(error)}; check that no other command keeps it "
            "locked, and that the disk is not full"
        ) from None
    keep_store(database, store)
    if moved:
        say(f"other machines can now fetch the models of {', '.join(moved)}, which were made without a server")


def _move(connection: sqlite3.Connection, database: Path, store: str, say: Callable[[str], None]) -> list[str]:
    """Returns the names of the experiments with models whose addresses it changed."""
    roots = list(_roots(connection, database, store))
    served = [root for root in roots if _is_served(root, store, say)]
    moving, known = ([Path(root.address) for root in some if root.bound] for some in (served, roots))
    if not moving:
        return []
    connection.execute("BEGIN IMMEDIATE")
    try:
        if changes := _changes(connection, moving, known):
            _change(connection, database, changes)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    _copy(database).unlink(missing_ok=True)
    return sorted(name for root in served if root.models and root.bound for name in root.experiments)


def _roots(connection: sqlite3.Connection, database: Path, store: str) -> Iterator[Root]:
    """Where experiments keep files that the server would not serve from `store` under their present addresses."""
    served, before, found = local_path(store), store_of(database), dict[str, Root]()
    for number, name, location in connection.execute("SELECT experiment_id, name, artifact_location FROM experiments"):
        folder = local_path(location or "")
        if folder is not None:
            top = str(served if served is not None and _inside(folder, served) is not None else folder)
            root = found.setdefault(top, Root(top, bound=True))
        elif urlsplit(location or "").scheme == SCHEME and before != store:
            root = found.setdefault(before, Root(before, bound=False))
        else:
            continue
        runs = connection.execute("SELECT artifact_uri FROM runs WHERE experiment_id = ?", (number,))
        models = "SELECT artifact_location FROM logged_models WHERE experiment_id = ? AND status = ?"
        own_runs, own_models = set(_places(runs, root)), set(_places(connection.execute(models, (number, READY)), root))
        root.runs |= own_runs
        root.models |= own_models
        root.experiments += [name] if own_runs or own_models else []
    yield from found.values()


def _places(rows: sqlite3.Cursor, root: Root) -> Iterator[str]:
    """The paths below `root` that the addresses in `rows` name."""
    top = local_path(root.address)
    for (address,) in rows:
        named = urlsplit(address or "")
        if named.scheme == SCHEME:
            yield unquote(named.path).strip("/")
        elif (folder := local_path(address or "")) and top and (inside := _inside(folder, top)):
            yield inside


def _is_served(root: Root, store: str, say: Callable[[str], None]) -> bool:
    """Whether the server finds in `store` what lies below `root`, or nothing is lost if it does not.

    Raises ServiceError: there are files that it would not find.
    """
    if root.address in (store, str(local_path(store))):
        return True
    missing = [place for place in sorted(root.runs | root.models) if not _holds(store, place)]
    names = ", ".join(sorted(root.experiments))
    if any(_holds(root.address, place) for place in missing):
        raise ServiceError(
            f"the models and files of {names} are in {_shown(root.address)}, and MLflow's server would not find them "
            f"in {_shown(store)}: name the first with --artifacts, or copy its content to the second"
        )
    if root.models & set(missing):
        say(f"the models of {names} are no longer in {_shown(root.address)}: their addresses stay as they are")
        return False
    return True


def _shown(address: str) -> str:
    return str(local_path(address) or address)


def _holds(store: str, place: str) -> bool:
    """Whether there are files at `place` in a folder or bucket. Raises ServiceError: it does not answer."""
    folder = local_path(store)
    if folder is not None:
        with contextlib.suppress(OSError):
            return any((folder / place).iterdir())
        return False
    environment.prepare(quiet=True)
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return bool(from_store(lambda: get_artifact_repository(store).list_artifacts(place), f"looking into {store}"))


def _changes(connection: sqlite3.Connection, moving: list[Path], known: list[Path]) -> list[tuple[str, str, str, str]]:
    """(table, column, old address, new address) of everything below the folders `moving`. known: all folders below
    which experiments keep files; an address belongs to the innermost."""
    changes = []
    for table, column in ADDRESSES:
        for (address,) in connection.execute(f"SELECT DISTINCT {column} FROM {table} WHERE {column} IS NOT NULL"):
            folder = local_path(address)
            if folder is None:
                continue
            around = [top for top in known if _inside(folder, top) is not None]
            top = max(around, key=lambda one: len(one.parts), default=None)
            if top in moving and top is not None:
                changes.append((table, column, address, f"{SCHEME}:/{quote(_inside(folder, top) or '')}"))
    return changes


def _inside(folder: Path, top: Path) -> str | None:
    """The path of `folder` relative to `top`, empty for `top` itself. None if it lies elsewhere."""
    folder, top = folder.resolve(), top.resolve()
    if folder == top:
        return ""
    return folder.relative_to(top).as_posix() if folder.is_relative_to(top) else None


def _change(connection: sqlite3.Connection, database: Path, changes: list[tuple[str, str, str, str]]) -> None:
    """Make the changes, after a copy of the database that lies beside it until they are complete."""
    with (
        contextlib.closing(sqlite3.connect(database, timeout=PATIENCE)) as reader,  # a writer cannot be copied from
        contextlib.closing(sqlite3.connect(_copy(database))) as copy,
    ):
        reader.backup(copy)
    for table, column, old, new in changes:
        connection.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", (new, old))


def _copy(database: Path) -> Path:
    return database.with_name(f"{database.name}.before-up")


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
