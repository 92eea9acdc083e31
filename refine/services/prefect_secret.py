"""The `user:password` that Prefect's server of `refine up` asks for. Our own programs find it; others have to be told.

It lies in $REFINE_HOME/services, readable by its owner alone. `refine up` makes it once and keeps it, unless the user
sets one in PREFECT_SERVER_API_AUTH_STRING, which is then kept.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from refine.errors import SettingError
from refine.system.files import write_private
from refine.system.local_services import services_folder, services_state, supervisor_runs

SERVER, CLIENT = "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"  # Prefect's variables for it


def random_secret() -> str:
    """A new `user:password`."""
    return f"refine:{secrets.token_urlsafe(32)}"


def choose() -> str:
    """The secret for a server that starts now: the user's, else the kept one, else a new one. It is kept.

    Raises SettingError: the user's has the wrong form.
    """
    given = os.environ.get(SERVER)
    if given and not (all(given.partition(":")) and given.isascii() and given.isprintable()):
        raise SettingError(f"{SERVER}: expected user:password in ASCII characters")
    known = kept()
    chosen = given or known or random_secret()
    if chosen != known:
        write_private(_file(), chosen)
    return chosen


def kept() -> str | None:
    """The secret of the last `refine up`. None if there is none."""
    try:
        return _file().read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError):
        return None


def secret_of(api: str) -> str | None:
    """The secret of the Prefect API at `api`, if it is that of `refine up`. While its supervisor does not run, another
    user's program may listen there: nothing is told to it."""
    ours = services_state().get("prefect_api") == api.rstrip("/") and supervisor_runs()
    return kept() if ours else None


def _file() -> Path:
    return services_folder() / "prefect.secret"
