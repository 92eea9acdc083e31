"""Causal softmax attention with grouped heads: full or over a window, with the norms, positions and gate of a family.

Shape legend: N tokens of all documents · G documents · D hidden size · A query heads · h heads of keys and values
· K width of a head · W window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from refine.models.attention.memory import NAMES, AttentionMemory
from refine.models.attention.spans import Spans
from refine.models.attention.trace import AttentionTrace
from refine.models.token_mixer import Keep, LayerMemory, TokenMixer, Trace, at_least_float32
from refine.ops.attention import full, rotary, shared_prefixes
from refine.ops.layout import Layout


@dataclass(frozen=True)
class AttentionOptions:
    """What differs between families. Sizes as in the shape legend.

    `turned`: channels of a head, the first ones, that rotary positions turn; 0 for attention without positions.
    `norm`: makes a norm of q and of k of a given width; `norm_over`: that width, K (each head) or "all" (before the
    head split). `gate`: q_proj also gives, for each head after its query, a gate of the output (sigmoid).
    `window`: tokens that a token sees, itself included; None: all. `bias` of q, k, v; `output_bias` of o_proj.
    """

    hidden: int
    heads: int
    groups: int
    width: int
    turned: int = 0
    theta: float = 10000.0
    norm: Callable[[int], nn.Module] | None = None
    norm_over: str = "head"
    gate: bool = False
    bias: bool = False
    output_bias: bool = False
    window: int | None = None

    @property
    def text(self) -> str:
        """The dimensions of the memory, as text: part of a model's signature."""
        window = "" if self.window is None else f", window {self.window}"
        return f"heads {self.groups} of {self.width}{window}"


class Attention(TokenMixer):
    """o_proj(softmax(q kᵀ / sqrt(K)) v), gated if `gate`; parameters are named as in published models."""

    def __init__(self, options: AttentionOptions) -> None:
        super().__init__()
        one = self.options = options
        self.q_proj = nn.Linear(one.hidden, (1 + one.gate) * one.heads * one.width, bias=one.bias)
        self.k_proj = nn.Linear(one.hidden, one.groups * one.width, bias=one.bias)
        self.v_proj = nn.Linear(one.hidden, one.groups * one.width, bias=one.bias)
        self.o_proj = nn.Linear(one.heads * one.width, one.hidden, bias=one.output_bias)
        if one.norm is not None:
            wide = one.norm_over == "all"
            self.q_norm = one.norm(one.heads * one.width if wide else one.width)
            self.k_norm = one.norm(one.groups * one.width if wide else one.width)

    def forward(self, x: Tensor, layout: Layout, memory: LayerMemory | None, keep: Keep) -> tuple[Tensor, Trace]:
        before = memory if memory is not None else self.fresh(layout.documents, x.device, x.dtype)
        assert isinstance(before, AttentionMemory)
        one = self.options
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        with torch.autocast(x.device.type, enabled=False):
            gate = None
            if one.gate:
                q, gate = (y.flatten(1) for y in q.unflatten(-1, (one.heads, -1)).chunk(2, -1))
            q, k = self._placed(q, k, layout)
            trim = keep is Keep.ENDS and one.window is not None
            trace = AttentionTrace(before, layout, {"keys": k, "values": self._heads(v)}, one.window, trim)
            o = self._attend(q, trace, layout).flatten(1)
            if gate is not None:
                wide = at_least_float32(o.dtype)
                o = (o.to(wide) * gate.to(wide).sigmoid()).to(o.dtype)
        return self.o_proj(o), trace

    def fresh(self, rows: int, device: torch.device, dtype: torch.dtype) -> AttentionMemory:
        one = self.options
        nothing = {name: torch.empty(0, one.groups, one.width, device=device, dtype=dtype) for name in NAMES}
        return AttentionMemory.of(Spans(nothing, [(0, 0)] * rows))

    def _heads(self, y: Tensor) -> Tensor:
        return y.unflatten(-1, (-1, self.options.width))

    def _placed(self, q: Tensor, k: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """q [N, A K], k [N, h K] -> [N, A, K], [N, h, K], normed and turned by their positions."""
        one = self.options
        if one.norm is not None and one.norm_over == "all":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = self._heads(q), self._heads(k)
        if one.norm is not None and one.norm_over == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if not one.turned:
            return q, k
        key = ("rotary", one.turned, one.theta)
        turns = layout.once(key, lambda: rotary.table(layout.position_of_token(), one.turned, one.theta, q.dtype))
        return self._turned(q, turns), self._turned(k, turns)

    def _turned(self, y: Tensor, turns: rotary.Table) -> Tensor:
        first = rotary.rotate(y[..., : self.options.turned], turns)
        return first if self.options.turned == y.shape[-1] else torch.cat([first, y[..., self.options.turned :]], -1)

    def _attend(self, q: Tensor, trace: AttentionTrace, layout: Layout) -> Tensor:
        """q [N, A, K] over the tokens before and the new ones -> [N, A, K]."""
        own, prefix, window = trace.tokens, trace.before.prefix, self.options.window
        if trace.fresh:
            return full.attend(q, own.tokens["keys"], own.tokens["values"], layout, window)
        pool = [prefix.tokens[name].to(q.dtype) for name in NAMES]
        return shared_prefixes.attend(q, [own.tokens[name] for name in NAMES], pool, trace.places(layout), window)
