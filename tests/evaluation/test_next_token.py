"""Next-token scores equal the plain definition, in any batch and at any length."""

from __future__ import annotations

import datasets
import pytest
import torch

from refine.errors import DataError, ModelError
from refine.evaluation import next_token


@pytest.fixture
def rows(tokenizer):
    torch.manual_seed(1)
    return [torch.randint(0, len(tokenizer), (n,)).tolist() for n in (2, 17, 40, 40, 95, 33)]


def plain(model, row: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, hit) of each token from the second on, by a full forward pass."""
    log_probs = model(torch.tensor([row])).logits[0, :-1].double().log_softmax(-1)
    targets = torch.tensor(row[1:])
    return -log_probs[torch.arange(len(targets)), targets].detach(), (log_probs.argmax(-1) == targets).double()


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_loss_and_accuracy_are_means_over_all_predicted_tokens(batch_size, model, rows):
    score = next_token.evaluate(model, rows, batch_size)
    losses, hits = (torch.cat(parts) for parts in zip(*(plain(model, row) for row in rows), strict=True))
    assert (score.tokens, score.sequences) == (sum(map(len, rows)) - 6, 6)
    assert score.loss == pytest.approx(float(losses.mean()), rel=1e-5)
    assert score.accuracy == pytest.approx(float(hits.mean()), abs=1e-9)
    assert score.loss_interval[0] < score.loss < score.loss_interval[1]


def test_scores_by_position_add_up_to_the_whole(model, rows):
    score = next_token.evaluate(model, rows)
    assert [(p.first, p.last) for p in score.by_position] == [(2, 16), (17, 32), (33, 64), (65, 95)]
    assert [p.tokens for p in score.by_position] == [1 + 5 * 15, 1 + 4 * 16, 1 + 2 * 8 + 32, 31]
    assert sum(p.loss * p.tokens for p in score.by_position) / score.tokens == pytest.approx(score.loss)
    assert [len(p.sequence_losses) for p in score.by_position] == [
        sum(len(row) >= p.first for row in rows) for p in score.by_position
    ]
    for p in score.by_position[:-1]:
        assert p.loss_interval[0] <= p.loss <= p.loss_interval[1]
    last = score.by_position[-1]
    assert last.sequence_losses == pytest.approx([last.loss])
    assert last.loss == pytest.approx(float(plain(model, rows[4])[0][-31:].mean()), rel=1e-5)


def test_a_data_set_with_a_tokens_column_and_tensors_score_as_lists_do(model, rows):
    expected = next_token.evaluate(model, rows)
    assert (
        next_token.evaluate(model, datasets.Dataset.from_dict({"tokens": rows, "document": list("abcdef")})) == expected
    )
    assert next_token.evaluate(model, [torch.tensor(row) for row in rows]) == expected


def test_the_documents_of_a_packed_row_are_scored_apart_with_their_marks(model, rows):
    packed = {"tokens": [rows[1] + rows[2], rows[3], rows[4]], "lengths": [[17, 40], [40], [95]]}
    marks = [[5, 17 + 30, 17 + 38], [], [90]]
    score = next_token.evaluate(model, datasets.Dataset.from_dict({**packed, "marks": marks}))
    apart = next_token.evaluate(model, rows[1:5])
    assert (score.loss, score.sequences, score.tokens) == (apart.loss, 4, apart.tokens) and apart.marked_loss is None
    one, two, _, four = (plain(model, row)[0] for row in rows[1:5])  # column t: the loss of token t + 1
    at = [one[4:12]], [two[29:37], two[37:]], [four[89:]]
    assert score.sequence_marked_losses == pytest.approx([float(torch.cat(parts).mean()) for parts in at], rel=1e-5)
    together = torch.cat([part for parts in at for part in parts])
    assert score.marked_loss == pytest.approx(float(together.mean()), rel=1e-5) and len(together) == 8 + 8 + 2 + 5
    assert score.marked_loss_interval[0] <= score.marked_loss <= score.marked_loss_interval[1]


def test_lengths_that_do_not_add_up_are_refused(model, rows):
    with pytest.raises(DataError, match="sequence 0 has 17 tokens, but its lengths add up to 16"):
        next_token.evaluate(model, datasets.Dataset.from_dict({"tokens": [rows[1]], "lengths": [[16]]}))


def test_one_sequence_has_no_interval(model, rows):
    assert next_token.evaluate(model, rows[:2][1:]).loss_interval is None


def test_the_mode_is_left_as_it_was(model, rows):
    model.train()
    next_token.evaluate(model, rows)
    assert model.training


def test_nothing_to_score_is_refused(model):
    with pytest.raises(DataError, match="no sequences"):
        next_token.evaluate(model, [])
    with pytest.raises(DataError, match="sequence 1 has 1 tokens"):
        next_token.evaluate(model, [[1, 2], [3]])
    with pytest.raises(ModelError, match="outside the vocabulary"):
        next_token.evaluate(model, [[1, 99999]])


def test_tokens_that_are_no_integers_are_not_cast():
    with pytest.raises(DataError, match="sequence 1: expected a list of token ids"):
        next_token.token_rows([[1, 2], [1.5, 2.0]])
