"""What an attention layer keeps of a read: its keys and values, of which every tap is a view.

Shape legend: N new tokens of all G documents · R tapped rows · W window.
"""

from __future__ import annotations

from refine.models.attention.memory import AttentionMemory
from refine.models.attention.spans import Spans, Tokens
from refine.models.token_mixer import MixerInputs, Trace
from refine.ops.attention.places import Places
from refine.ops.layout import Layout, Taps


class AttentionTrace(Trace):
    """The `new` [N, ...] tokens of documents that continue the rows of `before`.

    Documents without a memory become prefixes; else the new tokens follow the rows' own. Under gradient checkpointing
    keys and values are kept whole, too: they are what a tap must give, and with grouped heads no longer than one hidden
    state a token.
    """

    def __init__(self, before: AttentionMemory, layout: Layout, new: Tokens, window: int | None, trim: bool) -> None:
        self.before, self.window, self.trim = before, window, trim
        self.fresh = before.prefix.empty and before.own.empty
        self.old = before.own.counts
        self.tokens = before.own.extended(layout, new)

    def places(self, layout: Layout) -> Places:
        """Where the rows' prefixes lie in the tokens of `before`, found once a read for all layers."""
        prefix, own = self.before.prefix, self.tokens
        return layout.once(("prefixes", prefix.ranges, own.ranges), lambda: Places(layout, prefix.ranges, own.counts))

    def tap(self, taps: Taps, inputs: MixerInputs | None) -> AttentionMemory:
        starts = [self.tokens.ranges[g][0] for g in taps.documents]
        counts = [self.old[g] + n for g, n in zip(taps.documents, taps.counts, strict=True)]
        read = Spans(self.tokens.tokens, [(a, a + n) for a, n in zip(starts, counts, strict=True)])
        if self.fresh:
            memory = self.before.of(read)
        else:
            memory = type(self.before)(self.before.prefix.select(taps.documents), read)
        if self.window is None:
            return memory
        memory = memory.last(self.window - 1)
        return memory.trimmed() if self.trim else memory
