"""data/ to and from DVC's remote, and what DVC needs in a folder without git.

An S3 remote is asked once before DVC is started, because DVC takes a minute to report a remote that does not answer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from refine.data import parquet
from refine.data.corpus import version
from refine.errors import DataError, without_secrets


def push_data(report: Callable[[str], None] = lambda line: None) -> str:
    """Send data/ to DVC's default remote and give DVC's last line to `report`. Returns the remote's address.

    Raises DataError: no remote, or data/ is missing or differs from data.dvc; ServiceError: the remote does not answer.
    """
    version.require_folder()
    remote = _answering_remote()
    expected = version.recorded()
    if expected is None:
        raise DataError("data.dvc is missing: run `refine data fetch` first")
    if differs := version.differences(version.of(version.DATA), expected):
        raise DataError(f"data/ is not what data.dvc records: {', '.join(differs)}; {version.REMEDY}")
    version.leave_out_hidden_files()
    version.run_dvc("add", str(version.DATA))  # a fetched data/ is not in DVC's cache yet
    report(version.run_dvc("push", str(version.RECORD)))
    return remote


def pull_data(report: Callable[[str], None] = lambda line: None) -> str:
    """Bring data/ from DVC's default remote and give DVC's last line to `report`. Returns the remote's address.

    Raises DataError: no remote, no data.dvc, or the pulled data/ differs from it; ServiceError: the remote does not
    answer.
    """
    version.require_folder()
    remote = _answering_remote()
    if (expected := version.recorded()) is None:
        raise DataError("data.dvc is missing: it says which version to pull; restore it with git")
    report(version.run_dvc("pull", str(version.RECORD)))
    if differs := version.differences(version.of(version.DATA), expected):
        raise DataError(f"what came from {remote} is not what data.dvc records: {', '.join(differs)}")
    return remote


def _answering_remote() -> str:
    """The address of DVC's default remote, without a password in it. An S3 bucket has answered by then."""
    options = _default_remote()
    address = str(options["url"])
    if address.startswith("s3://"):
        parquet.ask_bucket(address, address, options.get("endpointurl"))
    return without_secrets(address)


def _default_remote(folder: str | Path = ".dvc") -> dict[str, Any]:
    """The options of DVC's default remote: `url` and others. DVC's own errors quote lines, so they are not shown."""
    from dvc.config import Config, ConfigError

    try:
        config = Config(str(folder))
    except (ConfigError, OSError, ValueError):
        raise DataError(f"DVC cannot read {folder}/config or config.local: `dvc remote list` says why") from None
    remote = config["remote"].get(config["core"].get("remote"))
    if remote is None:
        raise DataError("no DVC remote: `dvc remote add --default store s3://BUCKET/FOLDER` names one")
    return dict(remote)


def allow_without_git(root: str | Path = ".") -> str | None:
    """Let DVC work in `root` if that is a DVC project but no git repository: set core.no_scm in .dvc/config.local.

    Returns a line for the user, or None if nothing had to be changed.
    """
    folder = Path(root) / ".dvc"
    if not folder.is_dir() or (Path(root) / ".git").exists():
        return None
    from dvc.config import Config

    config = Config(str(folder))
    if config["core"].get("no_scm"):
        return None
    with config.edit("local") as local:
        local["core"]["no_scm"] = True
    return (
        f"no git repository here: {folder / 'config.local'} now lets DVC work without one (remove that file after "
        "`git init`); runs cannot name their commit, so `refine promote` will refuse them"
    )
