"""Data sets with tokens or text become rows; documents keep their borders and names. Rows of prompts with answers:
tests/phases/test_post.py."""

from __future__ import annotations

import datasets
import pytest
import torch

from refine.errors import DataError
from refine.training.dataset import collate, rows_of, token_rows
from refine.training.order import STAND_IN


def letters(text: str) -> dict[str, list[int]]:
    """A tokenizer with one token per letter."""
    return {"input_ids": [ord(letter) - ord("a") + 1 for letter in text]}


def test_rows_of_tokens_keep_document_and_offset():
    data = datasets.Dataset.from_dict(
        {"tokens": [[1, 2, 3], [4, 5, 6]], "document": ["hamlet", "lear"], "offset": [0, 3]}
    )
    row = token_rows(data)[1]
    assert row.tokens.tolist() == [4, 5, 6] and row.documents == ("lear@3",) and row.lengths == (3,)


def test_the_tokenizer_encodes_text():
    data = [{"text": "abc"}, {"text": "de"}]
    assert [row.tokens.tolist() for row in map(token_rows(data, letters).__getitem__, range(2))] == [
        [1, 2, 3],
        [4, 5],
    ]


def test_long_documents_are_cut_and_nothing_is_lost():
    rows = token_rows([{"text": "abcdefg"}, {"text": "hi"}], letters, max_length=3)
    assert [rows[index].tokens.tolist() for index in range(len(rows))] == [[1, 2, 3], [4, 5, 6], [7], [8, 9]]
    assert rows[1].documents == ("row 0+3",)


def test_packed_rows_hold_uncut_pieces_and_keep_their_borders():
    rows = token_rows([{"text": text} for text in ("ab", "cde", "fg", "h", "ijklmn")], letters, 5, packing=True)
    packed = [rows[index] for index in range(len(rows))]
    assert [row.lengths for row in packed] == [(2, 3), (2, 1), (5,), (1,)]
    assert [token for row in packed for token in row.tokens.tolist()] == list(range(1, 15))
    assert packed[0].documents == ("row 0", "row 1")


def test_a_batch_is_padded_on_the_right_and_has_lengths_only_if_it_is():
    rows = token_rows([{"tokens": [1, 2, 3]}, {"tokens": [4]}, {"tokens": [5, 6, 7], "lengths": [1, 2]}])
    batch = collate([rows[0], rows[1]])
    assert batch["tokens"].tolist() == [[1, 2, 3], [4, 0, 0]] and batch["lengths"] == [[3], [1]]
    assert batch["tokens"].dtype == torch.int64
    assert collate([rows[0], rows[0]])["lengths"] is None
    assert collate([rows[0], rows[2]])["lengths"] == [[3], [1, 2]]


def test_a_stand_in_is_a_row_that_counts_for_nothing():
    rows = token_rows([{"tokens": [1, 2, 3]}])
    assert collate([rows[STAND_IN]])["counted"] is False and collate([rows[0]])["counted"] is True


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ([], {}, "no rows"),
        ([{"words": "a"}], {}, "columns words: expected `tokens` or `text`"),
        ([{"text": "a"}], {}, "give processing_class"),
        ([{"text": "a", "marks": [1]}], {"tokenizer": letters}, "marks count tokens"),
        ([{"tokens": [1]}], {"packing": True}, "set max_length"),
        (iter([{"tokens": [1]}]), {}, "streamed"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused_in_one_line(data, options, message):
    with pytest.raises(DataError, match=message) as error:
        token_rows(data, **options)
    assert "\n" not in str(error.value)


def test_lengths_that_do_not_add_up_are_refused():
    with pytest.raises(DataError, match=r"row 0: the lengths \[1, 1\] do not add up to its 3 tokens"):
        token_rows([{"tokens": [1, 2, 3], "lengths": [1, 1]}])[0]


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ([1.0, 2.0], r"row 1 \(row 1\): expected a list of token ids \(integers\), found '1.0'"),
        ([1, True], "found 'True'"),
        (["1", "2"], "found '1'"),
        ([1, None], "found 'None'"),
        ([[1], [2, 3]], "expected a list of token ids"),
        ([1, -2], "token -2 is not in the vocabulary"),
        ([1, 99], r"token 99 is not in the vocabulary \(0 to 63\)"),
    ],
)
def test_tokens_that_are_no_ids_of_the_vocabulary_are_refused_with_their_row_and_not_cast(tokens, said, arguments):
    rows = rows_of([{"tokens": [1, 2]}, {"tokens": tokens}], None, arguments(), 64)
    assert rows[0].tokens.tolist() == [1, 2]
    with pytest.raises(DataError, match=said):
        rows[1]
    if tokens != [1, 99]:  # cut into pieces, they are read at once
        with pytest.raises(DataError, match=said.replace(r"row 1 \(row 1\)", "row 1")):
            rows_of([{"tokens": [1]}, {"tokens": tokens}], None, arguments(max_length=8), 64)


def test_rows_as_trl_has_them_are_prompts_with_answers_and_conversations():
    from refine.data.tokenizer import load_tokenizer
    from refine.training.arguments import RefineArguments

    tokenizer = load_tokenizer("sample/delta_net")
    args = RefineArguments(output_dir="out", use_cpu=True)
    (row,) = rows_of([{"prompt": "Who is there?", "completion": " The king."}], tokenizer, args)
    assert rows_of([{"prompt": "a", "completion": "b"}], tokenizer, args).with_answers
    assert tokenizer.decode(row.tokens[row.prompt :]) == " The king.</s>"
    chat = [{"messages": [{"role": "user", "content": "Who is there?"}]}]
    with pytest.raises(DataError, match=r"row 0: .*no chat template"):
        rows_of(chat, tokenizer, args)[0]
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
    conversations = rows_of(datasets.Dataset.from_list(chat), tokenizer, args)
    assert not conversations.with_answers
    assert tokenizer.decode(conversations[0].tokens) == "user: Who is there?"
    with pytest.raises(DataError, match="row 1: expected a prompt and a completion, neither empty"):
        rows_of([{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": ""}], tokenizer, args)[1]
