"""The largest size that fits a budget of tokens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from refine.data.prompts.fit_to_length import NEAR, largest_that_fits


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=200),
    budget=st.integers(0, 900),
    smallest=st.integers(1, 20),
    bounded=st.booleans(),
)
def test_what_it_finds_fits_and_leaves_less_room_than_one_more_takes(sizes, budget, smallest, bounded):
    """Words of 1 to 9 tokens: the search may stop where less is free than the mean of the words not yet taken."""

    def tokens(n: int) -> int:
        return 10 + sum(sizes[i % len(sizes)] for i in range(n))

    largest = max(smallest, len(sizes)) if bounded else None
    found, found_tokens = largest_that_fits(tokens, budget, smallest, largest)
    assert found_tokens == tokens(found) and found >= smallest
    if found_tokens > budget:
        assert found == smallest
    elif found != largest:
        assert budget - found_tokens <= max(9, budget * NEAR)


def test_the_bound_is_taken_if_it_fits_and_is_never_exceeded():
    measured = []

    def tokens(n: int) -> int:
        measured.append(n)
        return n

    assert largest_that_fits(tokens, 1000, 1, 37) == (37, 37)
    assert max(measured) == 37
    assert largest_that_fits(tokens, 5, 8) == (8, 8), "more than the budget, which the tokens show"
