"""Token sequences are of exact length and one document, in order, and evenly spread if capped."""

from __future__ import annotations

from itertools import starmap

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refine.data.raw_documents import Document
from refine.data.token_sequences import Counts, cut_into_sequences, load_token_sequences, prepare_token_sequences
from refine.errors import DataError
from refine.settings.data import DocumentsSettings

TEXT = "In the beginning God created the heaven and the earth. "


@pytest.fixture
def raw(tmp_path):
    """Write raw splits: {split: {id: text}}."""

    def write(**splits):
        (tmp_path / "data").mkdir(exist_ok=True)
        for split, texts in splits.items():
            table = pa.table({"id": list(texts), "text": list(texts.values())})
            pq.write_table(table, tmp_path / "data" / f"{split}.parquet")
        return tmp_path / "data"

    return write


def _sequences(texts, tokenizer, length):
    counts = Counts()
    return list(cut_into_sequences(starmap(Document, texts.items()), tokenizer, length, counts)), counts


def test_sequences_put_together_are_the_document(small_tokenizer):
    tokens = small_tokenizer(TEXT * 20, add_special_tokens=False)["input_ids"]
    found, counts = _sequences({"a": TEXT * 20}, small_tokenizer, 17)
    assert [sequence.offset for sequence in found] == list(range(0, 16 * len(found), 16))
    assert [token for sequence in found for token in sequence.tokens[1:]] == tokens[: 16 * len(found)]
    assert len(tokens) - 16 * len(found) < 16
    assert (counts.documents, counts.skipped, counts.available) == (1, 0, len(found))


def test_each_sequence_has_the_set_length_and_begins_as_a_prompt_does(small_tokenizer):
    found, _ = _sequences({"a": TEXT * 20, "b": TEXT * 7}, small_tokenizer, 17)
    assert {len(sequence.tokens) for sequence in found} == {17}
    assert {sequence.tokens[0] for sequence in found} == {small_tokenizer.bos_token_id}


def test_no_sequence_holds_two_documents(small_tokenizer):
    together, _ = _sequences({"a": TEXT * 5, "b": TEXT[::-1] * 5}, small_tokenizer, 9)
    alone = [_sequences({name: text}, small_tokenizer, 9)[0] for name, text in (("a", TEXT * 5), ("b", TEXT[::-1] * 5))]
    assert together == alone[0] + alone[1]


def test_a_document_that_just_fills_a_sequence_is_taken_and_one_token_less_is_not(small_tokenizer):
    size = len(small_tokenizer(TEXT)["input_ids"])
    found, counts = _sequences({"a": TEXT}, small_tokenizer, size)
    assert len(found) == 1 and counts.skipped == 0
    found, counts = _sequences({"a": TEXT}, small_tokenizer, size + 1)
    assert found == [] and (counts.documents, counts.skipped) == (1, 1)


def test_short_documents_are_skipped_counted_and_reported(raw, small_tokenizer, tmp_path):
    data = raw(
        train={"a": TEXT * 9, "short": "God"}, validation={"v": TEXT * 9}, second_domain={"s": TEXT * 9, "t": "t"}
    )
    lines = []
    counts = prepare_token_sequences(
        DocumentsSettings(sequence_length=16), data, small_tokenizer, tmp_path / "out", lines.append
    )
    assert (counts["train"].skipped, counts["validation"].skipped, counts["second_domain"].skipped) == (1, 0, 1)
    assert lines[0].startswith("train: ") and lines[0].endswith("from 2 documents, 1 shorter than a sequence skipped")
    assert set(load_token_sequences(tmp_path / "out" / "train.parquet")["document"]) == {"a"}


def test_a_split_of_short_documents_alone_is_an_error_and_nothing_is_written(raw, small_tokenizer, tmp_path):
    data = raw(train={"a": TEXT * 99}, validation={"v": TEXT}, second_domain={"s": TEXT * 99})
    with pytest.raises(
        DataError, match=r"validation\.parquet: none of its 1 documents has the 256 tokens of a sequence"
    ):
        prepare_token_sequences(DocumentsSettings(sequence_length=256), data, small_tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_validation_is_capped_evenly_over_documents_and_training_is_not(raw, small_tokenizer, tmp_path):
    long, short = TEXT * 40, TEXT * 3
    data = raw(
        train={"a": long},
        validation={"v1": long, "v2": long, "v3": short},
        second_domain={f"s{i}": long for i in range(9)},
    )
    chosen = DocumentsSettings(sequence_length=16, validation_sequences=12)
    counts = prepare_token_sequences(chosen, data, small_tokenizer, tmp_path / "out")
    assert counts["train"].sequences == counts["train"].available > 12
    found = load_token_sequences(tmp_path / "out" / "validation.parquet")
    of = {name: [row["offset"] for row in found if row["document"] == name] for name in ("v1", "v2", "v3")}
    whole = counts["validation"].available
    assert len(found) == 12 and abs(len(of["v1"]) - len(of["v2"])) <= 1 and len(of["v3"]) <= len(of["v1"])
    assert max(of["v1"]) > 15 * (whole // 2 - 3) * 3 // 4 and len(set(of["v1"])) == len(of["v1"])
    assert len(set(load_token_sequences(tmp_path / "out" / "second_domain.parquet")["document"])) == 9


def test_fewer_places_than_documents_are_spread_over_the_documents(raw, small_tokenizer, tmp_path):
    data = raw(
        train={"a": TEXT * 9},
        validation={"v": TEXT * 9},
        second_domain={f"s{i:02}": TEXT * 9 for i in range(20)},
    )
    prepare_token_sequences(
        DocumentsSettings(sequence_length=16, validation_sequences=4), data, small_tokenizer, tmp_path / "out"
    )
    taken = load_token_sequences(tmp_path / "out" / "second_domain.parquet")["document"]
    assert list(taken) == ["s02", "s07", "s12", "s17"]


def test_a_cap_above_what_there_is_keeps_all(raw, small_tokenizer, tmp_path):
    data = raw(train={"a": TEXT * 9}, validation={"v": TEXT * 9, "w": TEXT * 4}, second_domain={"s": TEXT * 9})
    chosen = DocumentsSettings(sequence_length=16, validation_sequences=1000)
    counts = prepare_token_sequences(chosen, data, small_tokenizer, tmp_path / "out")["validation"]
    assert counts.sequences == counts.available


def test_the_same_input_gives_the_same_bytes_and_the_contract_s_columns(raw, small_tokenizer, tmp_path):
    data = raw(train={"a": TEXT * 9}, validation={"v": TEXT * 9}, second_domain={"s": TEXT * 9})
    for name in ("one", "two"):
        prepare_token_sequences(DocumentsSettings(sequence_length=16), data, small_tokenizer, tmp_path / name)
    assert (tmp_path / "one" / "train.parquet").read_bytes() == (tmp_path / "two" / "train.parquet").read_bytes()
    loaded = load_token_sequences(tmp_path / "one" / "train.parquet")
    assert loaded.column_names == ["tokens", "document", "offset"]
    assert len(loaded[0]["tokens"]) == 16 and isinstance(loaded[0]["offset"], int)


def test_prepared_sequences_that_are_missing_or_of_another_form_are_named(tmp_path, parquet):
    with pytest.raises(DataError, match=r"train\.parquet is missing: run `dvc repro documents`"):
        load_token_sequences(tmp_path / "train.parquet")
    with pytest.raises(DataError, match="no column 'document'; it has tokens"):
        load_token_sequences(parquet("other", tokens=[[1, 2]]))
    (tmp_path / "broken.parquet").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"broken\.parquet: not a parquet file"):
        load_token_sequences(tmp_path / "broken.parquet")


def test_an_unwritable_place_is_one_line(raw, small_tokenizer, tmp_path):
    data = raw(train={"a": TEXT * 9}, validation={"v": TEXT * 9}, second_domain={"s": TEXT * 9})
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        prepare_token_sequences(DocumentsSettings(sequence_length=16), data, small_tokenizer, tmp_path / "file" / "out")


def test_packing_keeps_every_token_of_the_training_text_in_rows_that_name_their_documents_lengths(
    raw, small_tokenizer, tmp_path
):
    texts = {f"d{n}": TEXT * (1 + n % 4) for n in range(30)} | {"long": TEXT * 20}
    data = raw(train=texts, validation={"v": TEXT * 20}, second_domain={"s": TEXT * 20})
    settings = DocumentsSettings(sequence_length=100, packing=True)
    counts = prepare_token_sequences(settings, data, small_tokenizer, tmp_path / "prepared")
    rows = pq.read_table(tmp_path / "prepared" / "train.parquet").to_pylist()
    assert all(sum(row["lengths"]) == len(row["tokens"]) <= 100 for row in rows)
    pieces = []
    for row in rows:
        starts = [sum(row["lengths"][:n]) for n in range(len(row["lengths"]))]
        assert all(row["tokens"][start] == small_tokenizer.bos_token_id for start in starts)
        pieces += [row["tokens"][a + 1 : a + n] for a, n in zip(starts, row["lengths"], strict=True)]
    expected = [small_tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts.values()]
    cut = [tokens[first : first + 99] for tokens in expected for first in range(0, len(tokens), 99)]
    assert sorted(pieces) == sorted(cut)
    assert counts["train"].skipped == 0
    assert sum(len(row["tokens"]) for row in rows) > 0.75 * 100 * len(rows), "rows are well filled"
    assert "lengths" not in pq.read_table(tmp_path / "prepared" / "validation.parquet").column_names


def test_the_trainer_reads_packed_rows_as_separate_documents(raw, small_tokenizer, tmp_path):
    from refine.training.dataset import token_rows

    data = raw(train={f"d{n}": TEXT for n in range(9)}, validation={"v": TEXT * 20}, second_domain={"s": TEXT * 20})
    settings = DocumentsSettings(sequence_length=100, packing=True)
    prepare_token_sequences(settings, data, small_tokenizer, tmp_path / "prepared")
    rows = token_rows(load_token_sequences(tmp_path / "prepared" / "train.parquet"))
    size = len(small_tokenizer(TEXT)["input_ids"])
    assert sum(len(rows[n].lengths) for n in range(len(rows))) == 9
    assert {length for n in range(len(rows)) for length in rows[n].lengths} == {size}


MARKED_TEXT = TEXT * 20  # "heaven" is marked in each sentence


def marks_of(text: str) -> list[int]:
    return [place for place in range(len(text)) if text.startswith("heaven", place)]


def test_marks_become_numbers_of_tokens_in_their_piece(small_tokenizer):
    marks = marks_of(MARKED_TEXT)
    document = Document("a", MARKED_TEXT, tuple(marks))
    found = list(cut_into_sequences([document], small_tokenizer, 17, short=True))
    told = [small_tokenizer.decode(one.tokens[mark:]) for one in found for mark in one.marks]
    assert len(told) == len(marks) and all("heaven".startswith(text.strip()[:1]) for text in told)
    assert all(0 < mark < len(one.tokens) for one in found for mark in one.marks)


def test_prepared_sequences_have_marks_where_the_text_has_and_packed_rows_keep_them(raw, tmp_path, small_tokenizer):
    data = raw(validation={"v": TEXT * 20}, second_domain={"s": TEXT * 20})
    rows = {"id": ["a", "b"], "text": [MARKED_TEXT, TEXT], "marks": [marks_of(MARKED_TEXT), marks_of(TEXT)]}
    for split in ("train", "recall"):
        pq.write_table(pa.table(rows), data / f"{split}.parquet")
    settings = DocumentsSettings(sequence_length=40, packing=True, validation_sequences=3)
    prepare_token_sequences(settings, data, small_tokenizer, tmp_path / "documents")
    assert "marks" not in load_token_sequences(tmp_path / "documents" / "validation.parquet").column_names
    assert len(load_token_sequences(tmp_path / "documents" / "recall.parquet")) == 3
    train = load_token_sequences(tmp_path / "documents" / "train.parquet")
    told = [small_tokenizer.decode(row["tokens"][mark:]).strip()[:1] for row in train for mark in row["marks"]]
    assert told and set(told) == {"h"} and len(told) == 21


def test_marks_outside_a_text_are_refused(raw, tmp_path, small_tokenizer):
    data = raw(train={"t": TEXT}, validation={"v": TEXT * 9}, second_domain={"s": TEXT * 9})
    pq.write_table(pa.table({"id": ["a"], "text": [TEXT], "marks": [[len(TEXT)]]}), data / "train.parquet")
    with pytest.raises(DataError, match=r"train.parquet: row 0 \(a\) has a mark outside its text"):
        prepare_token_sequences(DocumentsSettings(sequence_length=16), data, small_tokenizer, tmp_path / "documents")
