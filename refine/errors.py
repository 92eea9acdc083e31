"""Errors that a user can cause. The command line prints one as a single line, without a traceback, and exits with 1."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from urllib.parse import unquote

# Of an address: `user:password@` (both may hold any character but space), or a name without password before @.
_USER = re.compile(r"(?<=://)(?:(?:(?!://)[^\s:@])*:(?:(?!://)\S)*@|[^/?#\s]*@)")
_USER_ALONE = re.compile(r"(?<![^\s'\"(=,])[\w.%+~-]+:[^\s/@:'\"]+@(?=[\w\[])")  # where the scheme was forgotten
_NAMES = "token|secret|passw|passphrase|pwd|signature|sig|credential|auth|api_?key|access_?key|account_?key"
_QUERY = re.compile(rf"(?i)([?&;#][^=&;#?\s]{{0,40}}(?:{_NAMES})[^=&;#?\s]{{0,40}}=)([^&;#\s'\"]+)")
_ENDLESS = re.compile(r"\S{500,}")
HIDDEN = "***"
TOKEN, PART = 20, 4  # characters from which a name without password is a token, and a part of a password is hidden


class RefineError(Exception):
    """An error that the user can correct. The message names what is wrong, what was expected and what to do. It is one
    line, also where a file's name or an address in it holds line breaks; an endless name loses its middle."""

    def __str__(self) -> str:
        line = " ".join(super().__str__().splitlines())
        return _ENDLESS.sub(lambda word: f"{word[0][:150]}…{word[0][-50:]}", line)


class SettingError(RefineError):
    """A setting that is unknown, out of range, or in conflict with another one."""


class DataError(RefineError):
    """Raw or prepared data that is missing, altered, or malformed."""


class ModelError(RefineError):
    """A checkpoint, memory or token sequence that does not fit the model."""


class TrainingError(RefineError):
    """Training that cannot continue: a non-finite loss, a checkpoint of other settings, a failed training process."""


class ServiceError(RefineError):
    """A server (MLflow, Prefect, S3) that does not answer, or refuses."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the known name closest to `name`, or an empty string."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""


def reason(error: BaseException | str, characters: int = 200) -> str:
    """The message of an error on one line, cut to `characters`, without the secrets of addresses that it quotes. An
    error without a message gives its class's name."""
    return " ".join(without_secrets(str(error)).split())[:characters] or type(error).__name__


def without_secrets(text: str, address: str = "") -> str:
    """`text` (an address, or a message that quotes addresses) without users, passwords and tokens: fit to be printed.

    address: the secrets in this address are hidden in `text` even where they stand alone, as in an error that quotes a
    part of it.
    """
    for secret in sorted(_secrets(address), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    text = _QUERY.sub(rf"\g<1>{HIDDEN}", _USER.sub("", text))
    return _USER_ALONE.sub("", text)


def _secrets(address: str) -> set[str]:
    """The passwords and tokens in an address, as they are written there and as they are meant."""
    users = [found.removesuffix("@") for found in _USER.findall(address) + _USER_ALONE.findall(address)]
    written = [user.partition(":")[2] for user in users] + [value for _, value in _QUERY.findall(address)]
    written += [user for user in users if ":" not in user and len(user) >= TOKEN]
    # A library that splits the address elsewhere quotes a part of a password that holds such a character.
    written += [part for one in written for part in re.split("[@/?#:]", one) if len(part) >= PART]
    return {secret for one in written if one for secret in (one, unquote(one))}
