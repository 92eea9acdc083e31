"""Readers of addresses: of servers, of S3, of DVC's remote. No mutation asks another machine."""

from __future__ import annotations

import random
from pathlib import Path

from tests.hostile import mutations as bad
from tests.hostile.reader import Reader, environment

SECRET = "hunter2"
CLOSED = "http://127.0.0.1:9"  # nothing listens there
PARTS = ("://", ":", "@", "/", "[", "]", "::1", "%", "%zz", "#", "?", "*", "**", "..", "{", "\\", " ", "\t", "\n", "\0")
MORE = ("99999999", "-1", "s3", "http", "\u0661", "\U0001f98a", "\udc80", "xn--", "x" * 300)


def changed_address(path: Path, sample: bytes, chance: random.Random) -> None:
    """Write the address with one to three parts put in, left out or doubled."""
    text = sample.decode()
    for _ in range(chance.choice((1, 2, 3))):
        first, last = sorted(chance.randrange(len(text) + 1) for _ in range(2))
        part = chance.choice((*PARTS, *MORE))
        text = chance.choice(
            (
                text[:first] + part + text[first:],
                text[:first] + part + text[last:],
                text[:first] + text[last:],
                text[:first],
            )
        )
    path.write_bytes(text.encode("utf-8", "surrogateescape"))


def _address_in(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "surrogateescape")


def _server(path: Path) -> None:
    from refine.errors import SettingError, without_secrets
    from refine.system.addresses import host_of, http_address

    address = _address_in(path)
    host_of(address)
    without_secrets(address)
    try:
        shown, _ = http_address(address, "the address", "http://HOST:PORT")
    except SettingError as error:
        assert SECRET not in str(error)
        raise
    assert SECRET not in shown


def _mlflow(path: Path) -> None:
    from refine.system.addresses import HERE, host_of
    from refine.tracking.connection import check_answers

    address = _address_in(path)
    if host_of(address) in ("", *HERE) and not address.startswith("sqlite"):
        check_answers(address, 0.5)


def _parquet_files(path: Path) -> None:
    from refine.data.parquet import find_parquet_files

    address = _address_in(path)
    if "://" in address and not address.startswith("s3://"):
        return  # fsspec would ask another machine
    with environment(AWS_ENDPOINT_URL_S3=CLOSED, AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="x"):
        find_parquet_files(address)


def _bucket(path: Path) -> None:
    from unittest.mock import patch

    from s3fs import S3FileSystem

    from refine.data.parquet import ask_bucket

    # s3fs waits between its tries at a port that nobody listens at; one try shows the same
    with environment(AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="x"), patch.object(S3FileSystem, "retries", 1):
        ask_bucket(_address_in(path), "the address", CLOSED)


def _remote(path: Path) -> None:
    from refine.data.corpus.dvc import _default_remote

    _default_remote(path.parent)


DVC_CONFIG = b"[core]\n    remote = store\n['remote \"store\"']\n    url = s3://bucket/folder\n"
LONG = f"{CLOSED}/the/long/path/of/a/server/behind/a/proxy?with=a&query=too".encode()
WITH_SECRET = f"http://user:{SECRET}@127.0.0.1:9/path".encode()

ADDRESSES = (
    Reader("a server's address", "address", lambda: WITH_SECRET, changed_address, _server, names=("the address",)),
    Reader("MLflow's address", "address", lambda: LONG, changed_address, _mlflow,
           names=("MLflow", "cannot write"), answered=False),
    Reader("an address of parquet files", "address", lambda: b"s3://bucket/folder/*.parquet", changed_address,
           _parquet_files, names=("s3", "parquet", "bucket", "address", "credentials"), answered=False),
    Reader("an address of a bucket", "address", lambda: b"s3://bucket/folder", changed_address, _bucket,
           names=("the address",), answered=False),
    Reader("DVC's config", ".dvc/config", lambda: DVC_CONFIG, bad.write_bytes, _remote, names=("DVC", "dvc")),
)  # fmt: skip
