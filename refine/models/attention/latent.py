"""Latent attention without positions (Kimi Linear; multi-head latent attention, arXiv 2405.04434, without rotation).

A token is remembered by one latent, from which the keys and values of all heads are made, and one key that all heads
share: rank + S numbers, however many heads there are.

Shape legend: N tokens of all documents · D hidden size · A heads · K width of a head's own key · S of the shared key
· V of a value · rank of the latent.

A read of fresh documents makes keys and values, as is cheapest. After a memory, a head's query is brought into the
space of the latents (kᵀq = latentᵀ W_kᵀ q), which are then keys and values of one group of heads: nothing is made of
the remembered tokens, and the prefix is the read's own tensor. Both are one formula.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refine.models.attention.memory import AttentionMemory
from refine.models.attention.spans import Spans
from refine.models.attention.trace import AttentionTrace
from refine.models.token_mixer import Keep, LayerMemory, TokenMixer, Trace, at_least_float32
from refine.ops.attention import full, shared_prefixes
from refine.ops.autocast import product
from refine.ops.layout import Layout
from refine.ops.rms_norm import RMSNorm

LATENT_EPS = 1e-6  # of the norms of latents; a config's rms_norm_eps does not change it
NAME = "latents"


@dataclass(frozen=True)
class LatentOptions:
    """Sizes as in the shape legend. `query_rank`: of the latent that queries are made of; None: of the hidden state.
    `bias`: of the projections to latents, and of o_proj."""

    hidden: int
    heads: int
    rank: int
    own_key: int
    shared_key: int
    value: int
    query_rank: int | None = None
    bias: bool = False

    @property
    def text(self) -> str:
        """The dimensions of the memory, as text: part of a model's signature."""
        return f"latents of {self.rank} and keys of {self.shared_key}"


class LatentMemory(AttentionMemory):
    """As AttentionMemory, of one tensor: each token's normed latent and then its shared key [., 1, rank + S]."""

    names: ClassVar[tuple[str, ...]] = (NAME,)


class LatentAttention(TokenMixer):
    """o_proj(softmax(q kᵀ / sqrt(K + S)) v); parameters are named as in published models."""

    def __init__(self, options: LatentOptions) -> None:
        super().__init__()
        one = self.options = options
        self.query, self.width = one.own_key + one.shared_key, one.rank + one.shared_key
        if one.query_rank is None:
            self.q_proj = nn.Linear(one.hidden, one.heads * self.query, bias=False)
        else:
            self.q_a_proj = nn.Linear(one.hidden, one.query_rank, bias=one.bias)
            self.q_a_layernorm = RMSNorm(one.query_rank, LATENT_EPS)
            self.q_b_proj = nn.Linear(one.query_rank, one.heads * self.query, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(one.hidden, self.width, bias=one.bias)
        self.kv_a_layernorm = RMSNorm(one.rank, LATENT_EPS)
        self.kv_b_proj = nn.Linear(one.rank, one.heads * (one.own_key + one.value), bias=False)
        self.o_proj = nn.Linear(one.heads * one.value, one.hidden, bias=one.bias)

    def forward(self, x: Tensor, layout: Layout, memory: LayerMemory | None, keep: Keep) -> tuple[Tensor, Trace]:
        before = memory if memory is not None else self.fresh(layout.documents, x.device, x.dtype)
        assert isinstance(before, LatentMemory)
        q = self._queries(x).unflatten(-1, (self.options.heads, self.query))
        latent, shared = self.kv_a_proj_with_mqa(x).split([self.options.rank, self.options.shared_key], -1)
        latent = self.kv_a_layernorm(latent)
        tokens = torch.cat([latent, shared], -1)[:, None]
        trace = AttentionTrace(before, layout, {NAME: tokens}, None, False)
        o = self._of_fresh(q, latent, shared, layout) if trace.fresh else self._of_memory(q, trace, layout)
        return self.o_proj(o.flatten(1)), trace

    def fresh(self, rows: int, device: torch.device, dtype: torch.dtype) -> AttentionMemory:
        return LatentMemory.of(
            Spans({NAME: torch.empty(0, 1, self.width, device=device, dtype=dtype)}, [(0, 0)] * rows)
        )

    def _queries(self, x: Tensor) -> Tensor:
        """x [N, D] -> [N, A (K + S)]."""
        if self.options.query_rank is None:
            return self.q_proj(x)
        return self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))

    def _of_fresh(self, q: Tensor, latent: Tensor, shared: Tensor, layout: Layout) -> Tensor:
        """q [N, A, K + S], latent [N, rank], shared key [N, S] of documents without a memory -> [N, A, V]."""
        one = self.options
        both = self.kv_b_proj(latent).unflatten(-1, (one.heads, one.own_key + one.value))
        own, v = both.split([one.own_key, one.value], -1)
        k = torch.cat([own, shared[:, None].expand(-1, one.heads, -1)], -1)
        # of one width: the kernels that make no matrix of scores ask for it. Zeros change no product
        width = max(self.query, one.value)
        with torch.autocast(q.device.type, enabled=False):
            q = q * (width / self.query) ** 0.5
            q, k, v = (F.pad(y, (0, width - y.shape[-1])) for y in (q, k, v))
            return full.attend(q, k, v, layout)[..., : one.value]

    def _of_memory(self, q: Tensor, trace: AttentionTrace, layout: Layout) -> Tensor:
        """q [N, A, K + S] over the tokens before and the new ones -> [N, A, V]."""
        one, own, prefix = self.options, trace.tokens, trace.before.prefix
        with torch.autocast(q.device.type, enabled=False):
            wide = at_least_float32(q.dtype)
            of_keys, of_values = self._matrices(q).to(wide).split([one.own_key, one.value], 1)
            own_part, shared_part = q.to(wide).transpose(0, 1).split([one.own_key, one.shared_key], -1)  # [A, N, .]
            asked = torch.cat([product(own_part, of_keys), shared_part], -1).transpose(0, 1)
            asked = asked * (self.width / self.query) ** 0.5  # `attend` divides by the root of the width that it sees
            pool, new = prefix.tokens[NAME], own.tokens[NAME]
            o = shared_prefixes.attend(asked, [new, new], [pool, pool], trace.places(layout))[..., : one.rank]
            return product(o.transpose(0, 1), of_values.mT).transpose(0, 1).to(q.dtype)

    def _matrices(self, like: Tensor) -> Tensor:
        """What makes a head's own key and value of a latent [A, K + V, rank]."""
        one = self.options
        if isinstance(self.kv_b_proj, nn.Linear):
            weight = self.kv_b_proj.weight
        else:  # with adapters
            identity = torch.eye(one.rank, dtype=like.dtype, device=like.device)
            weight = self.kv_b_proj(identity).mT
        return weight.unflatten(0, (one.heads, one.own_key + one.value))
