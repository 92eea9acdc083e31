"""Names of registered models and of experiments: they become names of folders, tags and addresses, so they are no
paths, and they are short."""

from __future__ import annotations

from refine.errors import SettingError, reason

LONGEST = 200  # characters; a folder's name has room for a version and a hash beside it
REFUSED = "/\\:@'\"`"  # signs of paths, of references to models, and of the text that MLflow searches by


def fault(name: str) -> str:
    """What is wrong with a name, as in "holds '/'"; empty if nothing is."""
    if not name.strip():
        return "is empty"
    if len(name) > LONGEST:
        return f"has {len(name)} characters, and at most {LONGEST} are allowed"
    if name.startswith("."):
        return "begins with a full stop"
    if name != name.strip():
        return "begins or ends with a space"
    held = [sign for sign in name if sign in REFUSED or not sign.isprintable()]
    return f"holds {held[0]!r}" if held else ""


def check_name(name: str | None, of: str) -> None:
    """Raises SettingError if `name` is a path or no name at all; None, for a default, passes. of: "an experiment"."""
    if name is not None and (wrong := fault(name)):
        raise SettingError(f"{reason(repr(name), 60)} is no name for {of}: it {wrong}; {expected()}")


def expected() -> str:
    """The rule, for messages."""
    return f"expected a name of at most {LONGEST} characters, without {' '.join(REFUSED)}"
