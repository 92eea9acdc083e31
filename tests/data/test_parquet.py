"""Parquet in S3, over HTTP: streamed, and complete although the server fails on the way."""

from __future__ import annotations

import socket
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refine.data import parquet as reading
from refine.data.corpus.fetch import fetch_data
from refine.data.corpus.sources import read_source
from refine.errors import DataError, ServiceError
from refine.settings.data import DataSettings, ParquetSource, TextSource
from refine.system import retries

ROWS = 40
TEXTS = [
    f"document {number} " + "".join(chr(97 + (number * i * i) % 26) for i in range(30_000)) for number in range(ROWS)
]


class Between(BaseHTTPRequestHandler):
    """A proxy before the S3 server. `server.plan(request)` names the mishap of each request, or None."""

    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        what = self.server.plan(self)  # type: ignore[attr-defined]
        if what == "cut":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if isinstance(what, int):
            body = b"<Error><Code>%s</Code></Error>" % {503: b"SlowDown", 403: b"AccessDenied"}.get(
                what, b"InternalError"
            )
            return self._answer(what, {"Content-Type": "application/xml"}, body)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        request = urllib.request.Request(self.server.behind + self.path, headers=headers, method=self.command)  # type: ignore[attr-defined]
        try:
            with urllib.request.urlopen(request) as answer:
                body = answer.read()
                self._answer(answer.status, dict(answer.headers), body if what != "half" else body[: len(body) // 2])
        except urllib.error.HTTPError as error:
            self._answer(error.code, dict(error.headers), error.read())

    do_GET = do_HEAD = _pass_on

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        if "content-length" not in {name.lower() for name in headers}:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        if int(headers.get("Content-Length", len(body))) != len(body):
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def s3_server():
    """An S3 server on loopback whose bucket `texts` holds folder/a.parquet and folder/b.parquet."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    client = boto3.client(
        "s3", endpoint_url=url, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
    )
    client.create_bucket(Bucket="texts")
    for name, part in (("a", TEXTS[: ROWS // 2]), ("b", TEXTS[ROWS // 2 :])):
        client.put_object(Bucket="texts", Key=f"folder/{name}.parquet", Body=_parquet(part))
    yield url, client
    server.stop()


def _parquet(texts: list[str]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": texts}), sink, row_group_size=4, compression="none", use_dictionary=False)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """The server behind `Between`. Set `.plan` to a function of the request that returns a mishap or None."""
    between = ThreadingHTTPServer(("127.0.0.1", 0), Between)
    between.daemon_threads = True
    between.behind, between.client = s3_server
    between.plan = lambda request: None
    threading.Thread(target=between.serve_forever, daemon=True).start()
    _credentials(monkeypatch, f"http://127.0.0.1:{between.server_port}")
    yield between
    between.shutdown()
    between.server_close()


def _credentials(monkeypatch, url: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-to-be-printed")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


def _texts(path: str, **options) -> list[str]:
    return [document.text for document in read_source(ParquetSource(path=path, **options))]


def _mishaps(*what, of=lambda request: request.command == "GET" and "Range" in request.headers):
    """A plan: of the requests that `of` picks, three succeed, then each has the next mishap."""
    waiting = [None, None, None, *what]
    return lambda request: waiting.pop(0) if waiting and of(request) else None


@pytest.mark.parametrize("path", ["s3://texts/folder", "s3://texts/folder/*.parquet", "s3://texts/*/?.parquet"])
def test_all_rows_come_in_order(s3, path):
    assert _texts(path) == TEXTS


def test_text_files_in_a_bucket_are_documents(s3):
    for name, text in (("b.md", "second é"), ("a.txt", "first"), ("c.log", "no text")):
        s3.client.put_object(Bucket="texts", Key=f"books/{name}", Body=text.encode())
    found = list(read_source(TextSource(path="s3://texts/books")))
    assert [(d.id, d.text) for d in found] == [
        ("s3://texts/books/a.txt", "first"),
        ("s3://texts/books/b.md", "second é"),
    ]
    with pytest.raises(DataError, match="s3://texts/nowhere: no text file there"):
        list(read_source(TextSource(path="s3://texts/nowhere")))


def test_a_single_object_and_a_title_free_id(s3):
    (document,) = read_source(ParquetSource(path="s3://texts/folder/b.parquet", documents=1))
    assert document.id == "s3://texts/folder/b.parquet#0" and document.text == TEXTS[ROWS // 2]


def test_reading_a_few_documents_of_a_large_file_leaves_the_rest_unread(s3, monkeypatch):
    big = _parquet([text * 8 for text in TEXTS])
    s3.client.put_object(Bucket="texts", Key="big/big.parquet", Body=big)
    sent = []
    answer = Between._answer
    monkeypatch.setattr(
        Between,
        "_answer",
        lambda self, status, headers, body: (sent.append(len(body)), answer(self, status, headers, body)),
    )
    monkeypatch.setattr(reading, "BLOCK", 2**20)
    assert len(_texts("s3://texts/big", documents=2)) == 2
    assert sum(sent) < len(big) / 2


@pytest.mark.parametrize("mishap", ["cut", "half", 500, 503])
def test_a_failed_request_is_repeated_and_no_row_is_lost_or_doubled(s3, mishap, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK", 2**17)
    s3.plan = _mishaps(mishap, mishap, None, mishap)
    assert _texts("s3://texts/folder") == TEXTS


def test_reading_goes_on_after_a_server_has_been_away_for_a_while(s3, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK", 2**17)
    gone = threading.Event()
    seen = []

    def plan(request):
        seen.append(time.monotonic())
        if len(seen) == 12:
            gone.set()
            threading.Timer(3.0, gone.clear).start()
        return "cut" if gone.is_set() else None

    s3.plan = plan
    start = time.monotonic()
    assert _texts("s3://texts/folder") == TEXTS
    assert time.monotonic() - start > 3


def test_a_server_that_stays_away_ends_in_one_line_and_leaves_no_half_data(s3, monkeypatch, tmp_path, parquet):
    monkeypatch.setattr(retries, "PATIENCE", 1.5)
    monkeypatch.setattr(reading, "BLOCK", 2**17)
    held = [ParquetSource(path=parquet(name, text=[name])) for name in ("validation", "second")]
    chosen = DataSettings(
        train=(ParquetSource(path="s3://texts/folder"),), validation=(held[0],), second_domain=(held[1],)
    )
    s3.plan = _mishaps(*["cut"] * 1000)
    with pytest.raises(ServiceError, match=r"texts/folder/.*the server does not answer") as refused:
        fetch_data(chosen, folder=tmp_path / "data", record=tmp_path / "data.dvc")
    assert "\n" not in str(refused.value) and "not-to-be-printed" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".parquet"] == []


@pytest.mark.parametrize("mishap", ["cut", None], ids=["with a failure", "silently"])
def test_an_object_replaced_while_it_is_read_is_not_mixed_with_its_successor(s3, monkeypatch, mishap):
    monkeypatch.setattr(reading, "BLOCK", 2**17)
    s3.client.put_object(Bucket="texts", Key="changing/c.parquet", Body=_parquet(TEXTS))
    seen = []

    def plan(request):
        seen.append(request.command)
        if seen.count("GET") != 5 or request.command != "GET":
            return None
        s3.client.put_object(Bucket="texts", Key="changing/c.parquet", Body=_parquet(TEXTS[::-1]))
        return mishap

    s3.plan = plan
    with pytest.raises(DataError, match=r"c\.parquet: was replaced while it was read"):
        _texts("s3://texts/changing")


@pytest.mark.parametrize("silent", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["refuses", "is silent"])
def test_a_server_that_does_not_answer_is_an_error_within_15_seconds(silent, monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if silent:
            listener.listen(20)
        _credentials(monkeypatch, f"http://127.0.0.1:{listener.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(ServiceError, match=r"the server does not answer .* AWS_ENDPOINT_URL_S3") as refused:
            _texts("s3://texts/folder")
        assert time.monotonic() - start < 15
        assert "\n" not in str(refused.value) and "not-to-be-printed" not in str(refused.value)


def test_a_missing_forbidden_or_other_file_is_an_error_of_one_line(s3):
    with pytest.raises(DataError, match="s3://texts/nothing: no parquet file there"):
        _texts("s3://texts/nothing")
    with pytest.raises(DataError, match="s3://no-such-bucket/x: no "):
        _texts("s3://no-such-bucket/x")
    s3.client.put_object(Bucket="texts", Key="plain/p.parquet", Body=b"plain text")
    with pytest.raises(DataError, match=r"p\.parquet: not a parquet file"):
        _texts("s3://texts/plain")
    with pytest.raises(DataError, match="no column 'body'"):
        _texts("s3://texts/folder", text_column="body")
    s3.plan = lambda request: 403
    with pytest.raises(ServiceError, match="access refused"):
        _texts("s3://texts/folder")


def test_an_error_about_missing_credentials_names_the_variables_to_set(s3, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(ServiceError, match="no credentials for S3; set AWS_ACCESS_KEY_ID"):
        _texts("s3://texts/folder")


def test_marks_of_folders_and_of_spark_in_s3_are_left_out_and_an_empty_object_is_refused(s3):
    client = s3.client
    marks = ["spark[1]/", "spark[1]/out.parquet/", "spark[1]/out.parquet/_SUCCESS", "spark[1]/._a.parquet"]
    for key in marks:
        client.put_object(Bucket="texts", Key=key, Body=b"")
    client.put_object(Bucket="texts", Key="spark[1]/out.parquet/part-0.parquet", Body=_parquet(TEXTS[:2]))
    for path in ("", "/*.parquet", "/out.parquet", "/out.parquet/*"):
        assert _texts(f"s3://texts/spark[1]{path}") == TEXTS[:2]
    client.put_object(Bucket="texts", Key="spark[1]/out.parquet/part-1.parquet", Body=b"")
    with pytest.raises(DataError, match=r"part-1\.parquet: an empty file"):
        _texts("s3://texts/spark[1]")
