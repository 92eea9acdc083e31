"""The token mixer of LaCT: sliding-window attention and a fast SwiGLU MLP over one shared projection of q, k, v.

Shape legend: N tokens of all documents · G documents · D hidden size · A attention heads · H fast heads
· K, E outer and inner width of the fast MLP · W window · C chunk size · T new tokens of every document, where equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from refine.models.lact.memory import LactMemory
from refine.models.lact.recent_tokens import RecentTokens, RecentTrace
from refine.models.lact.trace import LactTrace, Sizes, SparseLactTrace
from refine.models.token_mixer import EndsOnly, Keep, LayerMemory, TokenMixer, Trace
from refine.ops.attention import rotary, shared_windows, stretches
from refine.ops.attention import window as window_attention
from refine.ops.autocast import product
from refine.ops.fast_mlp import keys as fast_keys
from refine.ops.fast_mlp import read as fast_weight_read
from refine.ops.fast_mlp.mlp import Rule, Tokens, initial_state, row_norms
from refine.ops.fast_mlp.schedule import Schedule
from refine.ops.layout import Layout, Taps
from refine.ops.rms_norm import RMSNorm

EPS = 1e-5  # of q_norm, k_norm and ttt_norm; norm_eps does not change it
BASE_RATE = 0.001  # learning rate of the fast weights where lr_proj gives 0


class LowRank(nn.Module):
    """A fast weight's initial value w_left w_right + 0.5 I, [H, E, K] from [H, E, rank] and [H, rank, K]."""

    def __init__(self, heads: int, rows: int, columns: int, rank: int, gain: float) -> None:
        super().__init__()
        self.w_left = nn.Parameter(torch.empty(heads, rows, rank))
        self.w_right = nn.Parameter(torch.empty(heads, rank, columns))
        self.gain = gain

    def forward(self) -> Tensor:
        """[H, E, K]."""
        identity = torch.eye(
            self.w_left.shape[1], self.w_right.shape[2], device=self.w_left.device, dtype=self.w_left.dtype
        )
        return product(self.w_left, self.w_right) + 0.5 * identity


class _WithZeroGradients(torch.autograd.Function):
    """x, and a gradient of zeros for each of `parameters`.

    Where no chunk closes, nothing reads some parameters. Several processes would wait for the gradients that one of
    them lacks (DDP), and a parameter would be trained in a step or not depending on the lengths of its texts.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return grads[0], *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)


@dataclass
class Projected:
    """What both branches need of N tokens: queries, keys and values, rates, the scale of the fast branch's output."""

    queries: Tensor  # [N, A, D / A], rotated
    window: Tokens  # keys (rotated), values [N, A, D / A]
    fast_queries: Tensor  # [N, H, K]
    pending: Tokens  # keys, values [N, H, K], rates [N, H, 3], carry [N, H]
    scale: Tensor | None  # [N, H, 1]


class Lact(TokenMixer):
    """o_proj(window attention + scale · ttt_norm(fast MLP)); parameters are named as in the release."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        hidden, self.heads, self.fast_heads = config.hidden_size, config.num_attn_heads, config.num_lact_heads
        self.window, self.theta, self.nope = config.window_size, float(config.rope_theta), config.ttt_nope
        self.qk_silu, self.v_silu = config.qkv_silu, config.qkv_silu and not config.no_v_silu
        muon_dtype = getattr(torch, config.muon_dtype) if config.muon_dtype else None
        self.rule = Rule(config.lact_chunk_size, config.use_momentum, config.use_muon, config.ttt_prenorm, muon_dtype)
        self.append_limit = max(32, math.isqrt(2 * max(self.window, self.rule.chunk_size)))
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=config.qkv_bias)
        self.o_proj = nn.Linear(hidden, hidden, bias=False)
        if config.attn_qk_norm:
            self.q_norm, self.k_norm = RMSNorm(hidden, EPS), RMSNorm(hidden, EPS)
        self.qk_scale = nn.Parameter(torch.ones(hidden, 2))
        self.qk_offset = nn.Parameter(torch.zeros(hidden, 2))
        self._make_fast_weights(config, hidden // self.fast_heads)
        self.lr_proj = nn.Linear(hidden, 3 * self.fast_heads)
        self.ttt_norm = RMSNorm(hidden // self.fast_heads, EPS)
        if config.learnable_ttt_scale:
            self.ttt_scale_proj = nn.Linear(hidden, self.fast_heads)
        if config.use_momentum:
            self.momentum_proj = nn.Sequential(nn.Linear(hidden, self.fast_heads), nn.Sigmoid())

    def _make_fast_weights(self, config: Any, width: int) -> None:
        inner, rank = int(width * config.inter_multi), config.w0_w2_low_rank
        self.w1 = nn.Parameter(torch.empty(self.fast_heads, width, inner))
        for name in ("w0", "w2"):
            if rank > 0:
                setattr(self, name, LowRank(self.fast_heads, inner, width, rank, config.fw_init_gain))
            else:
                setattr(self, name, nn.Parameter(torch.empty(self.fast_heads, inner, width)))

    def initial_weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """w0, w1, w2 before the first token: [H, E, K], [H, K, E], [H, E, K]."""
        w0, w2 = (w() if isinstance(w, LowRank) else cast(Tensor, w) for w in (self.w0, self.w2))
        return w0, self.w1, w2

    def forward(self, x: Tensor, layout: Layout, memory: LayerMemory | None, keep: Keep) -> tuple[Tensor, Trace]:
        before = memory if memory is not None else self.fresh(layout.documents, x.device, x.dtype)
        assert isinstance(before, LactMemory)
        turns = layout.once(("rotary", self.theta), lambda: self.turns(layout.position_of_token(), x.dtype))
        projected = self.projected(x, turns)
        with torch.autocast(x.device.type, enabled=False):
            window = RecentTrace(before.window, layout, projected.window)
            pending = RecentTrace(before.pending, layout, projected.pending)
            append = self._appends(before, layout)
            attended = self._attend(projected.queries, window, append)
            fast, states = self._read_fast(projected.fast_queries, before, pending, append, keep)
            fast = self.ttt_norm(fast)
            if states.schedule.steps == 1 and torch.is_grad_enabled():
                fast = _WithZeroGradients.apply(fast, *self._of_updates())
            if projected.scale is not None:
                fast = fast * projected.scale
            mixed = attended.flatten(1) + fast.flatten(1)
        y = self.o_proj(mixed.to(projected.queries.dtype))
        sizes = Sizes(self.window, self.rule.chunk_size)
        if keep is Keep.SPARSE:
            return y, SparseLactTrace(sizes, self._memorised, states, before, layout)
        trace = LactTrace(sizes, states, window, pending, append, keep)
        if keep is Keep.ALL or torch.is_grad_enabled():
            return y, trace
        ends = layout.once("ends", lambda: Taps.ends(layout))
        return y, EndsOnly(trace.tap(ends, None), ends)  # so that the read can be freed

    def fresh(self, rows: int, device: torch.device, dtype: torch.dtype) -> LactMemory:
        width, fast_width = self.o_proj.in_features // self.heads, self.ttt_norm.weight.shape[0]
        precise = torch.promote_types(dtype, torch.float32)

        def nothing(heads: int, *shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty(0, heads, *shape, device=device, dtype=dtype)

        window = {name: nothing(self.heads, width) for name in ("keys", "values")}
        pending = {name: nothing(self.fast_heads, fast_width) for name in ("keys", "values")}
        pending["rates"] = nothing(self.fast_heads, 3, dtype=precise)
        if self.rule.momentum:
            pending["carry"] = nothing(self.fast_heads, dtype=precise)
        with torch.autocast(device.type, enabled=False):
            state = initial_state(*self.initial_weights(), self.rule)
        recent = (RecentTokens(tokens, [(0, 0)] * rows) for tokens in (window, pending))
        return LactMemory(state, [0] * rows, *recent)

    def turns(self, positions: Tensor, dtype: torch.dtype) -> rotary.Table:
        """The rotary table of tokens at true `positions` [N], for a model in `dtype`."""
        return rotary.table(positions, self.o_proj.in_features // self.heads, self.theta, dtype)

    def projected(self, x: Tensor, turns: rotary.Table) -> Projected:
        """x [N, D] and the tokens' rotary table -> what both branches read."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        rates, carry, scale = self._rates(x)
        with torch.autocast(x.device.type, enabled=False):
            if hasattr(self, "q_norm"):
                q, k = self.q_norm(q), self.k_norm(k)
            fast_q, fast_k = (self._fast(y, i) for i, y in enumerate((q, k)))
            fast_v = silu(v) if self.v_silu else v
            if not self.nope:
                fast_q, fast_k = (self._turned(y, turns).flatten(1) for y in (fast_q, fast_k))
            fast_q, fast_k, fast_v = (y.unflatten(-1, (self.fast_heads, -1)) for y in (fast_q, fast_k, fast_v))
            q, k = self._turned(q, turns), self._turned(k, turns)
        pending = {"keys": fast_k, "values": fast_v, "rates": rates} | ({} if carry is None else {"carry": carry})
        window = {"keys": k, "values": v.unflatten(-1, (self.heads, -1))}
        return Projected(q, window, fast_q, pending, scale)

    def _memorised(self, x: Tensor, positions: Tensor) -> tuple[Tokens, Tokens]:
        """x [M, D] at true `positions` [M] -> what window and chunk remember of these tokens."""
        projected = self.projected(x, self.turns(positions, x.dtype))
        return projected.window, projected.pending

    def _turned(self, y: Tensor, turns: rotary.Table) -> Tensor:
        """y [N, D] rotated in its attention heads -> [N, A, D / A]."""
        return rotary.rotate(y.unflatten(-1, (self.heads, -1)), turns)

    def _fast(self, y: Tensor, which: int) -> Tensor:
        """The fast branch's q (which = 0) or k (1) from y [N, D]: scale, offset, SiLU, fast heads of unit length."""
        scale, offset = self.qk_scale[:, which], self.qk_offset[:, which]
        return fast_keys.fast_keys(y, scale, offset, self.fast_heads, self.qk_silu)

    def _rates(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x [N, D] -> rates [N, H, 3] and carry [N, H], at least float32, and the fast output's scale [N, H, 1].

        rates = softplus(lr_proj x + softplus⁻¹(BASE_RATE)).
        """
        precise = torch.promote_types(x.dtype, torch.float32)
        offset = math.log(math.expm1(BASE_RATE))
        rates = softplus(self.lr_proj(x).to(precise) + offset).unflatten(-1, (self.fast_heads, 3))
        carry = self.momentum_proj(x).to(precise) if self.rule.momentum else None
        scale = silu(self.ttt_scale_proj(x)).unsqueeze(-1) if hasattr(self, "ttt_scale_proj") else None
        return rates, carry, scale

    def _of_updates(self) -> list[nn.Parameter]:
        """The trained parameters that only an update reads."""
        layers = [self.lr_proj, *([self.momentum_proj] if self.rule.momentum else [])]
        return [parameter for layer in layers for parameter in layer.parameters() if parameter.requires_grad]

    def _appends(self, before: LactMemory, layout: Layout) -> bool:
        """Whether the new tokens are few enough to be appended to the remembered ones, without a new pool."""
        if layout.width is None or not any(before.pending.counts):
            return False
        return before.pending.own_length + layout.width <= self.append_limit

    def _attend(self, queries: Tensor, window: RecentTrace, append: bool) -> Tensor:
        """Window attention of queries [N, A, D / A] -> [N, A, D / A]."""
        layout, before = window.layout, window.before
        if not append:
            laid = window.laid
            return window_attention.attend(queries, laid["keys"], laid["values"], layout, before.counts, self.window)
        windows = layout.once(
            ("windows", before.ranges),
            lambda: stretches.windows_of(before.ranges, queries.device, layout.longest),
        )
        own, pool = window.appended, {name: x.to(queries.dtype) for name, x in before.pool.items()}
        rows = queries.unflatten(0, (layout.documents, -1))
        out = shared_windows.attend(
            rows, own["keys"], own["values"], pool["keys"], pool["values"], windows, self.window
        )
        return out.flatten(0, 1)

    def _read_fast(
        self, queries: Tensor, before: LactMemory, pending: RecentTrace, append: bool, keep: Keep
    ) -> tuple[Tensor, fast_weight_read.States]:
        """The fast MLP of queries [N, H, K] -> [N, H, K], and the states that the read passes through."""
        layout, counts = pending.layout, before.pending.counts
        size = self.rule.chunk_size
        schedule = layout.once(("schedule", counts, size, append), lambda: Schedule(layout, counts, size, append))
        laid: Tokens | None = None
        if append and schedule.steps > 1:
            laid = before.pending.extended(schedule.laid_out, layout, pending.new)
        elif schedule.steps > 1:
            laid = pending.laid
        norms = row_norms(initial_state(*self.initial_weights(), self.rule)) if schedule.steps > 1 else {}
        kept = set(schedule.updates) if keep is Keep.ENDS else None
        return fast_weight_read.read(queries, laid, before.state, before.shared, schedule, self.rule, norms, kept)
