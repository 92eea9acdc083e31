"""Where rollouts may start follows from lengths, marks and tokens alone."""

from __future__ import annotations

import pytest
import torch

from refine.errors import SettingError
from refine.objective.candidates import Candidates, candidates, repeats, spans
from refine.objective.documents import Documents
from refine.settings.objective import ObjectiveSettings


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


@pytest.mark.parametrize("length", [0, 1, 5, 6, 40, 173])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_repeats_are_those_that_a_search_finds(length, k):
    tokens = torch.randint(0, 3, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    plain = [
        t for t in range(1, length - k + 1) if any(tokens[s : s + k] == tokens[t : t + k] for s in range(t - k + 1))
    ]
    assert list(repeats(tokens, k)) == plain


def test_marks_with_too_few_tokens_after_them_are_left_out_and_parts_are_even():
    settings = ObjectiveSettings(positions=2, selection="marked", rollout_length=3)
    documents = Documents((1, 20), None, [[2, 4, 9, 17, 18]])
    tokens = torch.zeros(1, 20, dtype=torch.int64)
    assert candidates(documents, tokens, settings) == [Candidates(((0, 2, 4), (1, 9, 17)), (2, 4, 9, 17))]
    more = settings.model_copy(update={"positions": 8})
    assert [first for _, first, last in candidates(documents, tokens, more)[0].spans] == [2, 4, 9, 17]


@pytest.mark.parametrize("selection", ["marked", "recall"])
def test_a_document_without_such_places_has_none_or_those_of_entropy(selection):
    documents, tokens = Documents((1, 60), None), torch.arange(60)[None]
    settings = ObjectiveSettings(selection=selection)
    assert candidates(documents, tokens, settings) == [Candidates(())]
    falls_back = settings.model_copy(update={"fallback": "entropy"})
    assert candidates(documents, tokens, falls_back) == [Candidates(tuple(spans(60, falls_back)))]


@pytest.mark.parametrize("mark", [-1, 0, 20, 30, 35])
def test_a_mark_outside_of_its_document_is_refused(mark):
    with pytest.raises(SettingError, match=f"mark {mark} of row 1 lies outside its documents"):
        Documents((2, 35), [[35], [20, 10]], [[], [5, mark]])


def test_marks_for_other_rows_are_refused():
    with pytest.raises(SettingError, match="marks of 1 rows, but the batch has 2"):
        Documents((2, 35), None, [[3]])
