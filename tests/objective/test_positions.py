"""Positions follow docs/method.md: one from each chunk of a document, by smoothed entropy, with the row's own seed."""

from __future__ import annotations

import math

import pytest
import torch

from refine.objective.documents import Documents
from refine.objective.positions import rollout_seeds, select, smooth, spans
from refine.settings.objective import ObjectiveSettings


def entropies(rows: int, length: int) -> torch.Tensor:
    return torch.rand(rows, length, generator=torch.Generator().manual_seed(length)) * 3


def plain_mean(values: list[float], t: int, width: int) -> float:
    """The mean of the real ones among `width` values centred on the t-th (1-based)."""
    around = [values[i - 1] for i in range(t - width // 2, t + width // 2 + 1) if 1 <= i <= len(values)]
    return sum(around) / len(around)


@pytest.mark.parametrize("length", [1, 4, 24, 25, 26, 61, 157, 4096])
@pytest.mark.parametrize("c", [1, 3, 8, 64])
def test_chunks_hold_admissible_positions_only_and_are_those_of_the_formula(length, c):
    settings = ObjectiveSettings(positions=c)
    plain = []
    for j in range(c):
        chunk = [t for t in range(length * j // c + 1, length * (j + 1) // c + 1) if 20 <= t <= length - 5]
        if chunk:
            plain.append((j, chunk[0], chunk[-1]))
    assert spans(length, settings) == plain


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
