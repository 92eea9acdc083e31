"""data/ is pushed to a DVC remote on S3 and pulled again; a bad remote is one early line; DVC runs without git."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from refine.data.corpus import version
from refine.data.corpus.dvc import allow_without_git, pull_data, push_data
from refine.errors import DataError, ServiceError


@pytest.fixture
def bucket(monkeypatch):
    """The address of an empty bucket of an S3 server on loopback."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    _credentials(monkeypatch, address)
    # moto keeps what earlier servers of this process stored
    urllib.request.urlopen(urllib.request.Request(f"{address}/moto-api/reset", method="POST")).close()
    boto3.client("s3").create_bucket(Bucket="store")
    yield "s3://store/refine"
    server.stop()


def _credentials(monkeypatch, url):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A DVC project with data/ recorded."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "data").mkdir()
    for split in ("train", "validation", "second_domain"):
        (folder / "data" / f"{split}.parquet").write_text(split)
    (folder / ".dvc" / "tmp").mkdir(parents=True)
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    with pytest.MonkeyPatch.context() as here:
        here.chdir(folder)
        version.record({})
    return folder


@pytest.fixture
def project(made, tmp_path, monkeypatch):
    """The current folder is a copy of `made`. `_remote` adds a remote to it."""
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "project"))
    return tmp_path / "project"


def _remote(address):
    with open(".dvc/config", "a") as config:
        config.write(f"    remote = store\n['remote \"store\"']\n    url = {address}\n")


def test_what_was_pushed_comes_back_when_data_and_cache_are_lost(project, bucket):
    _remote(bucket)
    shutil.rmtree(project / ".dvc" / "cache")  # as after `refine data fetch` in a fresh clone
    assert push_data() == bucket
    before = version.of(project / "data")
    for lost in (project / "data", project / ".dvc" / "cache"):
        shutil.rmtree(lost)
    pull_data()
    assert version.of(project / "data") == before


@pytest.mark.slow
def test_a_version_that_the_remote_does_not_have_is_an_error_and_leaves_no_half_data(project, bucket):
    _remote(bucket)
    for lost in (project / "data", project / ".dvc" / "cache"):
        shutil.rmtree(lost)
    with pytest.raises((ServiceError, DataError), match="dvc pull"):
        pull_data()
    assert not (project / "data").exists() or list((project / "data").iterdir()) == []


def test_an_altered_data_is_not_pushed(project):
    _remote("store")
    (project / "data" / "train.parquet").write_bytes(b"altered")
    with pytest.raises(DataError, match=r"data/train\.parquet differs"):
        push_data()


def test_without_a_remote_the_error_names_the_command_that_adds_one(project):
    for action in (push_data, pull_data):
        with pytest.raises(DataError, match="no DVC remote: `dvc remote add --default"):
            action()


@pytest.mark.parametrize("silent", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["refuses", "is silent"])
def test_a_remote_that_does_not_answer_is_an_error_within_15_seconds(project, monkeypatch, silent):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if silent:
            listener.listen(20)
        _credentials(monkeypatch, f"http://127.0.0.1:{listener.getsockname()[1]}")
        _remote("s3://store/refine")
        start = time.monotonic()
        with pytest.raises(ServiceError, match=r"s3://store/refine: the server does not answer"):
            pull_data()
        assert time.monotonic() - start < 15
    assert version.differences(version.of("data"), version.recorded()) == []


def test_a_bucket_that_does_not_exist_is_an_error(project, bucket):
    _remote("s3://another/refine")
    with pytest.raises(DataError, match="s3://another/refine: no such file, folder or bucket"):
        pull_data()


@pytest.mark.parametrize("line", ["    secret_access = hush\n", "    hush\n"], ids=["unknown option", "no option"])
def test_a_config_that_dvc_refuses_is_one_line_without_what_it_holds(project, line):
    _remote("s3://store/refine")
    with open(".dvc/config", "a") as config:
        config.write(line)
    with pytest.raises(DataError, match=r"DVC cannot read \.dvc/config or config\.local") as refused:
        push_data()
    assert "hush" not in str(refused.value) and "\n" not in str(refused.value)


def _run_dvc(folder, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=folder, capture_output=True, text=True)


def test_dvc_runs_in_an_unpacked_archive_which_has_no_git(tmp_path, checkout):
    (tmp_path / ".dvc").mkdir()
    shutil.copy(checkout / ".dvc" / "config", tmp_path / ".dvc")
    (tmp_path / "dvc.yaml").write_text("stages: {one: {cmd: echo done}}\n")
    assert "not a git repository" in _run_dvc(tmp_path, "repro").stderr
    line = allow_without_git(tmp_path)
    assert line and "config.local" in line and "\n" not in line
    assert _run_dvc(tmp_path, "repro").returncode == 0
    assert allow_without_git(tmp_path) is None, "the second time nothing is left to do"


def test_a_clone_and_a_folder_without_dvc_are_left_alone(tmp_path):
    assert allow_without_git(tmp_path) is None and not list(tmp_path.iterdir())
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".git").write_text("gitdir: elsewhere\n")
    assert allow_without_git(tmp_path) is None and not list((tmp_path / ".dvc").iterdir())
