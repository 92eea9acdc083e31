"""Errors of the hub as one line, and a data set without the hub; test_sources and test_tokenizer ask a dead hub."""

from __future__ import annotations

import httpx
import pytest
from huggingface_hub import HfApi, errors

from refine.data.hub import access_error, load_data_set, one_line_error
from refine.errors import DataError, ServiceError

REFUSED = errors.HfHubHTTPError(
    "404:\nnot found", response=httpx.Response(404, request=httpx.Request("GET", "http://h"))
)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (REFUSED, DataError, "'a/b' at revision main: the hub refuses it .*404: not found.*`hf auth login`"),
        (errors.HFValidationError("bad name"), DataError, r"no such folder, and not from the hub \(bad name\)"),
        (errors.OfflineModeIsEnabled("offline"), ServiceError, "no such folder here, and HF_HUB_OFFLINE keeps it from"),
        (httpx.ConnectError("no route"), ServiceError, r"the hub cannot be reached \(no route\)"),
        (TimeoutError("too\nlate"), ServiceError, r"the hub cannot be reached \(too late\)"),
        (ValueError("no split\nof that name"), DataError, "data set 'a/b': no split of that name"),
    ],
)
def test_an_error_of_the_hub_or_its_clients_is_one_line(error, kind, message):
    with pytest.raises(kind, match=message) as found:
        raise one_line_error(error, "data set", "a/b")
    assert "\n" not in str(found.value)


def test_our_own_error_stays_as_it_is_and_a_defect_is_raised_again():
    ours = DataError("as it is")
    assert one_line_error(ours, "data set", "a/b") is ours
    with pytest.raises(ZeroDivisionError, match="a defect"):
        one_line_error(ZeroDivisionError("a defect"), "data set", "a/b")


@pytest.mark.parametrize(("what", "request_name"), [("data set", "dataset_info"), ("tokenizer", "model_info")])
def test_a_name_that_the_hub_has_is_no_error_and_a_silent_hub_is_one(monkeypatch, what, request_name):
    asked = []
    monkeypatch.setattr(HfApi, request_name, lambda self, name, **options: asked.append((name, options["revision"])))
    assert access_error(what, "a/b", "v1") is None and asked == [("a/b", "v1")]

    def silent(*arguments, **options):
        raise TimeoutError("no answer")

    monkeypatch.setattr(HfApi, request_name, silent)
    assert isinstance(access_error(what, "a/b"), ServiceError)


def test_a_data_set_in_a_folder_needs_no_hub(parquet, tmp_path):
    (tmp_path / "set").mkdir()
    parquet("set/test-0", text=["one", "two"])
    assert load_data_set(str(tmp_path / "set"), None, "test")["text"][:] == ["one", "two"]
    with pytest.raises(DataError, match=r"data set '.*set': Unknown split"):
        load_data_set(str(tmp_path / "set"), None, "train")
