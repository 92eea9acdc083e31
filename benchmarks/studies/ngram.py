"""An n-gram model to compare the small models with: interpolated Kneser-Ney over tokens, a discount for each order."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence


class KneserNey:
    """P(w | context) by interpolated Kneser-Ney (Kneser and Ney 1995; Chen and Goodman 1999, section 3).

    documents: token lists to count in. order: longest n-gram.
    vocabulary: number of tokens, for the uniform distribution below single tokens.
    """

    def __init__(self, documents: Sequence[Sequence[int]], order: int, vocabulary: int) -> None:
        self.order, self.vocabulary = order, vocabulary
        counts: Counter[tuple[int, ...]] = Counter()
        for tokens in documents:
            for end in range(1, len(tokens) + 1):
                counts[tuple(tokens[max(end - order, 0) : end])] += 1
        self.levels = []  # from the longest n-grams to single tokens
        for length in range(order, 0, -1):
            whole = Counter({gram: count for gram, count in counts.items() if len(gram) == length})
            self.levels.append(_Level(whole))
            shorter: Counter[tuple[int, ...]] = Counter()  # in how many contexts each shorter n-gram was seen
            for gram in whole:
                shorter[gram[1:]] += 1
            for gram, count in counts.items():
                if len(gram) < length:
                    shorter[gram] += count  # at a document's start there is no longer n-gram
            counts = shorter

    def probability(self, context: Sequence[int], token: int) -> float:
        """P(token | the last order - 1 tokens of `context`)."""
        found, weight = 0.0, 1.0
        for level in self.levels:
            length = self.order - 1 - self.levels.index(level)
            if length > len(context):
                continue
            before = tuple(context[len(context) - length :]) if length else ()
            total = level.total.get(before)
            if total is None:
                continue
            found += weight * max(level.counts.get((*before, token), 0) - level.discount, 0.0) / total
            weight *= level.discount * level.kinds[before] / total
        return found + weight / self.vocabulary

    def loss(self, documents: Sequence[Sequence[int]]) -> float:
        """Mean of -log P over every token but each document's first [nats per token]."""
        losses = [
            -math.log(self.probability(tokens[max(end - self.order + 1, 0) : end], tokens[end]))
            for tokens in documents
            for end in range(1, len(tokens))
        ]
        return sum(losses) / len(losses)


class _Level:
    """Counts of the n-grams of one length, and of what follows each context."""

    def __init__(self, counts: Counter[tuple[int, ...]]) -> None:
        self.counts = counts
        self.total: dict[tuple[int, ...], int] = defaultdict(int)
        self.kinds: dict[tuple[int, ...], int] = defaultdict(int)
        for gram, count in counts.items():
            self.total[gram[:-1]] += count
            self.kinds[gram[:-1]] += 1
        once, twice = (sum(count == n for count in counts.values()) for n in (1, 2))
        self.discount = once / (once + 2 * twice) if once else 0.5
        self.total, self.kinds = dict(self.total), dict(self.kinds)
