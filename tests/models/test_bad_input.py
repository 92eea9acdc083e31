"""What cannot be read is refused in one line that says which and where."""

import pytest
import torch

from refine.errors import ModelError

SQUARE = torch.ones(2, 5, dtype=torch.int64)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"tokens": torch.tensor([[1, 2], [3, 61]])},
            r"token 61 at row 1, place 1 is outside the vocabulary, 0 \.\. 60",
        ),
        ({"tokens": torch.tensor([[1, -1]])}, r"token -1 at row 0, place 1 is outside"),
        ({"tokens": torch.ones(1, 0, dtype=torch.int64)}, r"nothing to read: tokens has shape 1 x 0"),
        ({"tokens": torch.ones(0, 3, dtype=torch.int64)}, r"nothing to read: tokens has shape 0 x 3"),
        ({"tokens": torch.ones(5, dtype=torch.int64)}, r"tokens must be int64 of shape \[rows, tokens\].*\(5,\)"),
        ({"tokens": torch.ones(2, 5)}, r"tokens must be int64 .* not torch\.float32"),
        ({"tokens": [[1, 2]]}, r"tokens must be an int64 tensor .* not a list"),
        ({"taps": torch.tensor([[5, 1], [0, 2]])}, r"tap 0 at \[1, 0\] is out of range: expected 1 \.\. 5"),
        ({"taps": torch.tensor([[5, 6], [1, 2]])}, r"tap 6 at \[0, 1\] is out of range: expected 1 \.\. 5"),
        ({"taps": torch.tensor([1, 2])}, r"taps must be int64 of shape \[2, c\]"),
        ({"taps": torch.tensor([[1], [2]], dtype=torch.int32)}, r"taps must be int64 .* not torch\.int32"),
        ({"taps": torch.ones(2, 0, dtype=torch.int64)}, r"taps has no columns"),
        ({"lengths": [[5], [3]], "taps": torch.tensor([[5], [4]])}, r"tap 4 at \[1, 0\] .* 1 \.\. 3, row 1's tokens"),
        ({"lengths": [[5]]}, r"lengths has 1 rows, but tokens has 2"),
        ({"lengths": [5, 5]}, r"lengths\[0\] is 5: expected a list of the documents packed in row 0"),
        ({"lengths": [[5], [4, 2]]}, r"lengths\[1\] is \[4, 2\]: .* together at most 5"),
        ({"lengths": [[5], [4, 0]]}, r"lengths\[1\] is \[4, 0\]: expected documents of at least one token"),
        ({"lengths": [[5], []]}, r"lengths\[1\] is \[\]"),
    ],
)
def test_it_is_refused_with_what_and_where(name, configs, build, given, message):
    model = build(configs[name], torch.float32)
    with pytest.raises(ModelError, match=message):
        model.read(**{"tokens": SQUARE, **given})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input_ids": torch.tensor([[1, 99]])}, r"token 99 at row 0, place 1 is outside"),
        ({"input_ids": SQUARE, "attention_mask": torch.ones(2, 3)}, r"attention_mask has shape \(2, 3\)"),
        ({"input_ids": SQUARE, "attention_mask": torch.zeros(2, 5)}, r"attention_mask leaves no token to read"),
        ({}, r"give either input_ids or inputs_embeds"),
    ],
)
def test_a_call_is_refused_alike(name, configs, build, given, message):
    with pytest.raises(ModelError, match=message):
        build(configs[name], torch.float32)(**given)


def test_a_tap_after_a_read_that_is_not_tappable_says_how_it_would_be(name, configs, build):
    reading = build(configs[name], torch.float32).read(SQUARE)
    with pytest.raises(ModelError, match="pass tappable=True"):
        reading.tap(torch.ones(2, 1, dtype=torch.int64))
