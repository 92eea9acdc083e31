"""A file's SHA-256 is that of its bytes now; a file that has not changed is read once."""

from __future__ import annotations

import hashlib
import os
import time

import pytest

from refine.system import digests


def test_the_digest_is_that_of_the_bytes_and_follows_every_change(tmp_path):
    path = tmp_path / "file"
    for content in (b"", b"one", b"two", b"two!"):
        path.write_bytes(content)
        assert digests.sha256_of(path) == hashlib.sha256(content).hexdigest()
    with pytest.raises(FileNotFoundError):
        digests.sha256_of(tmp_path / "nowhere")


def test_a_file_that_has_not_changed_for_a_while_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    reads, real = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *given: reads.append(1) or real(*given))
    assert digests.sha256_of(path) == digests.sha256_of(path) and len(reads) == 2, "it may still change"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 10)
    first = digests.sha256_of(path)
    assert digests.sha256_of(path) == first and len(reads) == 3
    path.write_bytes(b"two!")
    os.utime(path, ns=(0, 0))
    assert digests.sha256_of(path) == hashlib.sha256(b"two!").hexdigest()
