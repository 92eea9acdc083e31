"""A checkout that git knows nothing of (an unpacked archive): DVC refuses to run in one until it is told so."""

from __future__ import annotations

from pathlib import Path


def tell_dvc(root: str | Path = ".") -> str | None:
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
