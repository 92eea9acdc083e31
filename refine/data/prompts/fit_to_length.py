"""Fill a prompt up to a length without exceeding it."""

from __future__ import annotations

from collections.abc import Callable

NEAR = 0.004  # of the budget may stay free: each measurement of a long prompt takes time


def largest_that_fits(
    tokens: Callable[[int], int], budget: int, smallest: int, largest: int | None = None
) -> tuple[int, int]:
    """(n, tokens(n)) with the largest n found, from `smallest` to `largest`, for which tokens(n) is at most `budget`.

    tokens(n) must grow with n, almost linearly: the search doubles n up to a bound, then interpolates. If `smallest`
    is already too much, it returns that; the caller sees it by the tokens.
    """
    low, low_tokens = smallest, tokens(smallest)
    if low_tokens > budget or smallest == largest:
        return low, low_tokens
    high = _at_most(2 * low, largest)
    while (high_tokens := tokens(high)) <= budget:
        if high == largest:
            return high, high_tokens
        low, low_tokens, high = high, high_tokens, _at_most(2 * high, largest)
    while high - low > 1:
        # where a straight line through both ends meets the budget, but never an end itself
        guess = low + (high - low) * (budget - low_tokens) // max(high_tokens - low_tokens, 1)
        middle = min(max(guess, low + 1), high - 1)
        measured = tokens(middle)
        if measured > budget:
            high, high_tokens = middle, measured
            continue
        low, low_tokens = middle, measured
        if budget - low_tokens <= max((high_tokens - low_tokens) / (high - low), budget * NEAR):
            break  # the room left is less than the mean size of one more, or within NEAR
    return low, low_tokens


def _at_most(n: int, largest: int | None) -> int:
    return n if largest is None else min(n, largest)
