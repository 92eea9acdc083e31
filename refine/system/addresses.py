"""Addresses of servers: their form, the credentials in them, and the way to servers on this machine past any proxy."""

from __future__ import annotations

import base64
import os
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from refine.errors import SettingError

HERE = ("localhost", "127.0.0.1", "::1")
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
EXCEPTIONS = "no_proxy"


def http_address(url: str, name: str, example: str) -> tuple[str, str]:
    """`url` without user and password, and these as `user:password` (empty if it names none).

    name: of the setting, for the message. Raises SettingError, which does not quote `url`: it is no http address.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        good = good and "@" not in parts.path + parts.query + parts.fragment  # a user or password that holds / ? or #
    except ValueError:
        good = False
    if not good or any(sign.isspace() or not sign.isprintable() for sign in url):
        raise SettingError(
            f"{name} is not the address of a server: expected {example}, with special characters of a user or password "
            "written as in URLs (@ is %40)"
        )
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")
    return bare, f"{user}:{password}" if user or password else ""


def host_of(url: str) -> str:
    """The host in `url`. Empty if it names none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def local_path(address: str) -> Path | None:
    """The path that a file:// address or a plain path names. None for an address of anything else."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return None
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(urllib.request.url2pathname(parts.path))
    return None if parts.scheme or not address else Path(address)


def basic(credentials: str) -> str:
    """The Authorization header for `user:password`."""
    return "Basic " + base64.b64encode(credentials.encode()).decode()


def request(url: str, authorization: str = "") -> urllib.request.Request:
    """A GET request of `url`, with an Authorization header unless `authorization` is empty."""
    return urllib.request.Request(url, headers={"Authorization": authorization} if authorization else {})


def reach_directly(*hosts: str) -> None:
    """If a proxy is set, let this process and those that it starts ask this machine, and `hosts`, without it.

    All clients (httpx, requests, websockets, botocore, urllib) read the variables no_proxy or NO_PROXY. The user's
    exceptions stay in them. Call it before such a client is made.
    """
    if not any(os.environ.get(name) or os.environ.get(name.upper()) for name in PROXIES):
        return
    known = os.environ.get(EXCEPTIONS) or os.environ.get(EXCEPTIONS.upper()) or ""
    listed = [one.strip() for one in known.split(",") if one.strip()]
    if "*" not in listed:
        known = ",".join(dict.fromkeys([*listed, *HERE, *filter(None, hosts)]))
    os.environ[EXCEPTIONS] = os.environ[EXCEPTIONS.upper()] = known
