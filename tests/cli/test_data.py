"""`refine data` and `refine prepare`: each user error is one line, and no file is left half-written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from refine.cli.main import main
from refine.data.corpus import version
from refine.data.prompts.prompt import load_prompts
from refine.data.token_sequences import load_token_sequences

LINES = "KING JOHN:\nNow, say, Chatillon, what would France with us? {}\n\n"


@pytest.fixture(scope="module")
def project(tmp_path_factory, checkout):
    """A project folder with small sources on disk, settings that name them, and data/ fetched and recorded."""
    folder = tmp_path_factory.mktemp("project")
    values = yaml.safe_load((checkout / "params.yaml").read_text())
    values["data"] = {}
    for split in ("train", "validation", "second_domain"):
        texts = ["".join(LINES.format(f"{split} {number} {line}") for line in range(60)) for number in range(3)]
        pq.write_table(pa.table({"text": texts}), folder / f"{split}_texts.parquet")
        values["data"][split] = [{"kind": "parquet", "path": f"{split}_texts.parquet"}]
    values["tokenizer"] |= {"path": None, "vocabulary": 340}
    values["documents"] = {"sequence_length": 64, "validation_sequences": 8}
    values["needles"] |= {"tasks": ["niah_single_1"], "lengths": [512], "samples": 2, "answer_tokens": 32}
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    (folder / ".dvc" / "tmp").mkdir(parents=True)
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    with pytest.MonkeyPatch.context() as here:
        here.chdir(folder)
        main_ends("data", "fetch")
    return folder


@pytest.fixture
def fetched(project, tmp_path, monkeypatch):
    """The current folder is a copy of `project`."""
    monkeypatch.chdir(shutil.copytree(project, tmp_path / "project"))
    return tmp_path / "project"


@pytest.fixture
def place(fetched):
    """The same folder before `refine data fetch`."""
    shutil.rmtree(fetched / "data")
    (fetched / "data.dvc").unlink()
    return fetched


def main_ends(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 0


def refused(capsys, *arguments: str) -> str:
    """The one line that a refused command prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    printed = capsys.readouterr().err
    assert ended.value.code == 1 and printed.startswith("error: ") and printed.count("\n") == 1
    return printed


def test_fetch_writes_records_and_then_has_nothing_to_do(place, capsys):
    main_ends("data", "fetch")
    assert "validation: 3 documents" in capsys.readouterr().out
    main_ends("data", "fetch")
    assert capsys.readouterr().out == "data/ is up to date\n"
    main_ends("data", "check")
    assert version.recorded().md5 in capsys.readouterr().out


def test_altered_data_is_refused_by_check_by_fetch_and_by_the_stages(fetched, capsys):
    (fetched / "data" / "train.parquet").write_bytes(b"altered")
    assert "data/train.parquet differs" in refused(capsys, "data", "check")
    assert "data/train.parquet differs" in refused(capsys, "data", "fetch")
    assert "data/train.parquet is not what data.dvc records" in refused(capsys, "prepare", "tokenizer")
    assert not (fetched / "prepared").exists()
    main_ends("data", "fetch", "--replace")
    main_ends("data", "check")


def test_missing_data_is_reported_with_the_command_that_fetches_it(fetched, capsys):
    shutil.rmtree(fetched / "data")
    for arguments in (("data", "check"), ("prepare", "tokenizer")):
        assert "is missing: run `refine data fetch`" in refused(capsys, *arguments)
    (fetched / "data.dvc").unlink()
    assert "data.dvc is missing" in refused(capsys, "data", "check")


def test_a_changed_source_needs_update_and_then_is_the_new_version(fetched, capsys):
    rows = pq.read_table("train_texts.parquet").slice(0, 2)
    shutil.rmtree(fetched / "data")
    pq.write_table(rows, "train_texts.parquet")
    printed = refused(capsys, "data", "fetch")
    assert "data/train.parquet differs" in printed and "--update" in printed and not (fetched / "data").exists()
    main_ends("data", "fetch", "--update")
    main_ends("data", "check")


def test_an_unwritable_data_folder_is_one_line(place, capsys):
    (place / "data").write_text("a file in the way")
    assert "data" in refused(capsys, "data", "fetch")
    assert (place / "data").read_text() == "a file in the way"


def test_the_stages_write_the_contracts_files(fetched, capsys):
    for stage in ("tokenizer", "documents", "needles"):
        main_ends("prepare", stage)
    printed = capsys.readouterr().out
    assert (
        "tokenizer: 340 pieces" in printed
        and "validation: 8 of" in printed
        and "needles: 2 prompts in each of 1 files" in printed
    )
    rows = load_token_sequences("prepared/documents/validation.parquet")
    assert len(rows) == 8 and len(rows[0]["tokens"]) == 64
    assert [prompt.task for prompt in load_prompts("prepared/needles/niah_single_1_512.parquet")] == [
        "niah_single_1"
    ] * 2


def test_a_stage_can_be_run_again_with_another_setting(fetched, capsys):
    main_ends("prepare", "tokenizer")
    main_ends("prepare", "documents", "-S", "documents.sequence_length=32")
    assert len(load_token_sequences("prepared/documents/train.parquet")[0]["tokens"]) == 32


def test_documents_that_are_all_too_short_leave_the_former_output(fetched, capsys):
    main_ends("prepare", "tokenizer")
    main_ends("prepare", "documents")
    before = Path("prepared/documents/train.parquet").read_bytes()
    printed = refused(capsys, "prepare", "documents", "-S", "documents.sequence_length=99999")
    assert "none of its 3 documents has the 99999 tokens" in printed
    assert Path("prepared/documents/train.parquet").read_bytes() == before


def test_stages_without_a_tokenizer_say_how_to_make_it(fetched, capsys):
    for stage in ("documents", "needles"):
        assert "prepared/tokenizer is missing: run `dvc repro tokenizer`" in refused(capsys, "prepare", stage)


def test_an_unwritable_output_folder_is_one_line(fetched, capsys):
    (fetched / "prepared").write_text("a file in the way")
    assert "prepared/tokenizer: cannot be written" in refused(capsys, "prepare", "tokenizer")


def test_a_length_too_short_for_a_needle_leaves_nothing_behind(fetched, capsys):
    main_ends("prepare", "tokenizer")
    assert "does not fit in 40 tokens" in refused(capsys, "prepare", "needles", "-S", "needles.lengths=[512,40]")
    assert not (fetched / "prepared" / "needles").exists()
