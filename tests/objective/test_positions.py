"""Positions follow docs/method.md: one from each chunk of a document, by smoothed entropy, with the row's own seed."""

from __future__ import annotations

import math

import pytest
import torch

from refine.objective.candidates import candidates, spans
from refine.objective.documents import Documents
from refine.objective.positions import Plan, rollout_seeds, smooth
from refine.objective.positions import select as select_from
from refine.settings.objective import ObjectiveSettings


def select(entropy, documents, seeds, settings, tokens=None):
    tokens = torch.zeros(entropy.shape, dtype=torch.int64) if tokens is None else tokens
    plan = Plan.of(documents, candidates(documents, tokens, settings), settings)
    return select_from(documents.grid(entropy), *plan.sent(documents, seeds, entropy.device), settings)


def entropies(rows: int, length: int) -> torch.Tensor:
    return torch.rand(rows, length, generator=torch.Generator().manual_seed(length)) * 3


def plain_mean(values: list[float], t: int, width: int) -> float:
    """The mean of the real ones among `width` values centred on the t-th (1-based)."""
    around = [values[i - 1] for i in range(t - width // 2, t + width // 2 + 1) if 1 <= i <= len(values)]
    return sum(around) / len(around)


@pytest.mark.parametrize(("k", "width"), [(1, 1), (2, 3), (5, 5), (6, 7)])
def test_smoothing_averages_real_tokens_alone(k, width):
    values = entropies(2, 30)
    values[1, 11:] = 1e6  # after the end of the second document
    found = smooth(values, torch.tensor([30, 11]), k)
    for g, length in enumerate((30, 11)):
        plain = [plain_mean(values[g, :length].tolist(), t, width) for t in range(1, length + 1)]
        assert found[g, :length].tolist() == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("selection", ["entropy", "uniform"])
def test_draws_follow_the_formula(selection, temperature):
    settings = ObjectiveSettings(
        positions=2, selection=selection, selection_temperature=temperature, min_prefix=3, rollout_length=3
    )
    rows, length = 20_000, 30
    entropy = entropies(1, length).expand(rows, -1)
    starts = select(entropy, Documents(entropy.shape, None), torch.arange(rows), settings)
    drawn = starts.positions()
    for j, first, last in spans(length, settings):
        smoothed = [plain_mean(entropy[0].tolist(), t, 3) for t in range(first, last + 1)]
        weights = [math.exp(h / temperature) if selection == "entropy" else 1.0 for h in smoothed]
        counts = torch.bincount(drawn[:, j], minlength=length + 1)[first : last + 1]
        expected = torch.tensor(weights) / sum(weights) * rows
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        degrees = last - first
        assert counts.sum() == rows
        assert chi_square < degrees + 5 * math.sqrt(2 * degrees)  # five standard deviations


@pytest.mark.parametrize(("selection", "best"), [("argmax", max), ("argmin", min)])
def test_argmax_and_argmin_take_the_unsmoothed_extreme_of_each_chunk(selection, best):
    settings = ObjectiveSettings(positions=3, selection=selection)
    entropy = entropies(2, 100)
    positions = select(entropy, Documents((2, 100), None), torch.tensor([1, 2]), settings).positions()
    for b in range(2):
        plain = [best(range(f, z + 1), key=lambda t: float(entropy[b, t - 1])) for _, f, z in spans(100, settings)]
        assert positions[b].tolist() == plain


def test_a_rows_draws_depend_on_its_own_seed_alone():
    settings, entropy = ObjectiveSettings(), entropies(5, 300)
    seeds = torch.tensor([3, -7, 2**62, 0, 3])
    together = select(entropy, Documents((5, 300), None), seeds, settings)
    reversed_ = select(entropy.flip(0), Documents((5, 300), None), seeds.flip(0), settings)
    assert torch.equal(together.positions(), reversed_.positions().flip(0))
    for b in range(5):
        alone = select(entropy[b, None], Documents((1, 300), None), seeds[b, None], settings)
        assert torch.equal(alone.positions()[0], together.positions()[b])
        own = rollout_seeds(seeds[b, None], alone, 3)
        assert torch.equal(own, rollout_seeds(seeds, together, 3)[b * 24 : (b + 1) * 24])
    other = select(entropy, Documents((5, 300), None), seeds + 1, settings)
    assert not torch.equal(together.positions(), other.positions())


def test_every_rollout_has_a_seed_of_its_own():
    starts = select(entropies(9, 300), Documents((9, 300), None), torch.arange(9), ObjectiveSettings())
    seeds = rollout_seeds(torch.arange(9), starts, 5)
    assert len(set(seeds.tolist())) == 9 * 8 * 5


def test_packed_documents_are_chosen_from_as_if_each_were_alone():
    settings = ObjectiveSettings(positions=4, selection="argmax")
    lengths = [[100, 10, 60], [26, 90]]
    documents, entropy = Documents((2, 175), lengths), entropies(2, 175)
    found = select(entropy, documents, torch.tensor([1, 2]), settings).positions()
    assert found.shape == (2, 12)
    for document in documents.all:
        here = entropy[document.row, None, document.start : document.start + document.length]
        alone = select(here, Documents(here.shape, None), torch.tensor([0]), settings).positions()[0]
        slots = found[document.row, document.number * 4 : document.number * 4 + 4]
        assert torch.where(slots < 0, slots, slots - document.start).tolist() == alone.tolist()


@pytest.mark.parametrize("length", [1, 2, 5, 20, 24, 25, 26, 27, 30, 33, 47, 64])
def test_short_sequences_get_fewer_positions_or_none_and_never_one_twice(length):
    settings = ObjectiveSettings(positions=8)
    positions = select(entropies(3, length), Documents((3, length), None), torch.arange(3), settings).positions()
    assert positions.shape == (3, 8)
    for row in positions.tolist():
        drawn = [t for t in row if t >= 0]
        assert drawn == sorted(set(drawn)) and all(20 <= t <= length - 5 for t in drawn)
        assert len(drawn) == len(spans(length, settings)) <= max(0, length - 24)
    assert (positions >= 0).any() == (length >= 25)


def test_marks_are_drawn_evenly_and_alike():
    settings = ObjectiveSettings(positions=3, selection="marked", rollout_length=4)
    rows, marks = 9000, [5, 9, 12, 30, 31, 47, 58]  # 58 leaves 2 tokens of 60
    documents = Documents((rows, 60), None, [marks] * rows)
    drawn = select(entropies(1, 60).expand(rows, -1), documents, torch.arange(rows), settings).positions()
    for column, part in enumerate(([5, 9], [12, 30], [31, 47])):
        counts = [int((drawn[:, column] == mark).sum()) for mark in part]
        assert sum(counts) == rows and max(counts) < 0.53 * rows


def test_marks_of_packed_documents_are_counted_in_their_row_and_other_documents_fall_back():
    settings = ObjectiveSettings(positions=2, selection="marked", rollout_length=4, min_prefix=10)
    shape, lengths, marks = (2, 90), [[50, 40], [90]], [[60, 70, 80], []]
    for fallback, expected in (("none", [[-1, -1, 60, 70], [-1] * 4]), ("entropy", None)):
        chosen = settings.model_copy(update={"fallback": fallback, "positions": 2})
        found = select(entropies(*shape), Documents(shape, lengths, marks), torch.tensor([1, 2]), chosen).positions()
        assert found[0, 2] == 60 and found[0, 3] in (70, 80)
        if expected:
            assert found[0, :2].tolist() == [-1, -1] and found[1].tolist() == [-1] * 4
        else:
            assert 10 <= found[0, 0] <= 25 < found[0, 1] <= 46 and (found[1, :2] > 0).all()


def test_recall_starts_rollouts_before_repeats_by_entropy():
    settings = ObjectiveSettings(positions=1, selection="recall", rollout_length=3)
    tokens = torch.arange(100).repeat(2, 1)
    tokens[0, 40:50], tokens[0, 80:90] = tokens[0, 10:20], tokens[0, 20:30]
    entropy = entropies(2, 100)
    entropy[0, 80:] += 50
    found = select(entropy, Documents((2, 100), None), torch.tensor([1, 2]), settings, tokens).positions()
    assert 80 <= found[0, 0] <= 87 and found[1, 0] == -1
