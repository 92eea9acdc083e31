"""data/ to and from DVC's remote. An S3 remote is asked once before DVC is: by itself DVC takes a minute to give up."""

from __future__ import annotations

import configparser
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from refine.data import parquet
from refine.data.corpus import version
from refine.errors import DataError, ServiceError


def push_data(report: Callable[[str], None] = lambda line: None) -> str:
    """Send data/ to DVC's remote. Returns the remote's address.

    Raises DataError: no remote, data/ missing or not what data.dvc records; ServiceError: the remote does not answer.
    """
    address = _answering()
    expected = version.recorded()
    if expected is None:
        raise DataError("data.dvc is missing: run `refine data fetch` first")
    if differs := version.differences(version.of(version.DATA), expected):
        raise DataError(f"data/ is not what data.dvc records: {', '.join(differs)}; {version.REMEDY}")
    _dvc("add", str(version.DATA))  # into DVC's cache, where a data/ that was fetched is not yet
    report(_dvc("push", str(version.RECORD)))
    return address


def pull_data(report: Callable[[str], None] = lambda line: None) -> str:
    """Bring data/ from DVC's remote as data.dvc records it. Returns the remote's address.

    Raises DataError: no remote or data.dvc, or what came is not what is recorded; ServiceError: no answer.
    """
    address = _answering()
    if (expected := version.recorded()) is None:
        raise DataError("data.dvc is missing: it says which version to pull; restore it with git")
    report(_dvc("pull", str(version.RECORD)))
    if differs := version.differences(version.of(version.DATA), expected):
        raise DataError(f"what came from {address} is not what data.dvc records: {', '.join(differs)}")
    return address


def _answering() -> str:
    """The address of DVC's default remote, once it has answered."""
    address, options = _remote()
    if address.startswith("s3://"):
        with parquet.one_line_errors_of(address):
            file_system = parquet.s3_file_system(endpoint_url=options.get("endpointurl"))
            file_system.call_s3("head_bucket", Bucket=address.removeprefix("s3://").split("/")[0])
    return address


def _remote(folder: Path = Path(".dvc")) -> tuple[str, dict[str, str]]:
    """Address and options of the default remote in .dvc/config and .dvc/config.local."""
    config = configparser.ConfigParser(interpolation=None)
    try:
        config.read([folder / "config", folder / "config.local"], encoding="utf-8")
        name = config["core"]["remote"]
        section = next(part for part in config.sections() if part.strip("'") == f'remote "{name}"')
        return config[section]["url"], dict(config[section])
    except (KeyError, StopIteration):
        raise DataError("no DVC remote: `dvc remote add --default store s3://BUCKET/FOLDER` names one") from None
    except configparser.Error as error:
        raise DataError(f"{folder}/config: {' '.join(str(error).split())}") from None


def _dvc(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = [line for line in done.stderr.splitlines() if line.strip()]
        told = " ".join(reason).removeprefix("ERROR: ")[:400]
        raise ServiceError(f"`dvc {' '.join(arguments)}` failed: {told}")
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def allow_without_git(root: str | Path = ".") -> str | None:
    """Set core.no_scm in .dvc/config.local where `root` is a DVC project and no git repository; returns a line on it,
    or None where there is nothing to tell."""
    folder = Path(root) / ".dvc"
    if not folder.is_dir() or (Path(root) / ".git").exists():
        return None
    from dvc.config import Config

    config = Config(str(folder.absolute()))
    if config.get("core", {}).get("no_scm"):
        return None
    with config.edit("local") as local:
        local.setdefault("core", {})["no_scm"] = True
    return (
        f"no git repository here: DVC is told so in {folder / 'config.local'} (remove that file after `git init`); "
        "runs cannot name their commit, so `refine promote` will refuse them"
    )
