"""What DeltaNet, Gated DeltaNet, KDA share: convolved q, k, v, delta rule, per-head norm, gate, output projection.

Shape legend: N tokens of all documents · G documents · R tapped rows · D hidden size · W width of the convolution
              H heads of q and k · J heads of v (H, or a multiple where values are grouped) · K, V widths of a head.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refine.models.delta.trace import DeltaTrace, SparseDeltaTrace, States
from refine.models.token_mixer import EndsOnly, Keep, LayerMemory, TensorMemory, TokenMixer, Trace
from refine.models.token_mixer import at_least_float32 as wide
from refine.ops import short_convolution
from refine.ops.autocast import compute_dtype
from refine.ops.delta_rule import fla, passes
from refine.ops.delta_rule import rule as delta_rule
from refine.ops.layout import Ends, Layout, Taps
from refine.ops.made_again import without_keeping
from refine.ops.rms_norm import RMSNorm, unit_length


class ShortConvolution(nn.Conv1d):
    """A depthwise causal convolution with weights [F, 1, W], saved and initialised as in fla."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, channels, width, groups=channels, bias=False)

    def forward(  # type: ignore[override]
        self, x: Tensor, tail: Tensor | None, layout: Layout, silu: bool, fused: bool = False
    ) -> tuple[Tensor, short_convolution.Tails]:
        """x [N, F], tail [G, W - 1, F] -> y [N, F], with SiLU if `silu`, and the tails, in at least float32.

        fused: fla's kernel computes y, in the dtype of x.
        """
        kernel = passes.convolution if fused else None
        return short_convolution.read(x, self.weight[:, 0].to(wide(x.dtype)), None, tail, layout, silu, kernel)


class RuleInputs(NamedTuple):
    """What the delta rule is given besides q, k and v.

    beta [N, J], log_decay [N, J], [N, J, K] or None, as `DeltaRuleMixer.rates` gives them. state [D, J, K, V] or None
    (zero), from each of which `sharing` rows in a row start. dtype: what the kernels read.
    """

    beta: Tensor
    log_decay: Tensor | None
    state: Tensor | None
    sharing: int
    layout: Layout
    dtype: torch.dtype


class DeltaRuleMixer(TokenMixer):
    """The layer except its projections and rates, which a subclass adds under the names of its format.

    A memory has "state" [R, J, K, V] and the last inputs of the convolutions: `tails` names them, [R, W - 1, width].
    `decays_by_channel`: whether the log decay is one of each key channel. `steps`: of the delta rule, for each token.
    `uses_kernels`: whether fla's kernels may compute it. `gate_activation`: "silu" or "sigmoid", of the output gate.
    """

    decays_by_channel = False
    steps = 1
    uses_kernels = True
    gate_activation = "silu"
    only_multiplies = True
    steady = True

    def __init__(
        self, heads: int, value_heads: int, key: int, value: int, conv_size: int, tails: dict[str, int]
    ) -> None:
        super().__init__()
        self.heads, self.value_heads, self.key, self.value = heads, value_heads, key, value
        self.conv_size = conv_size
        self.tails = tails if conv_size else {}

    @abstractmethod
    def project(self, x: Tensor) -> dict[str, Tensor]:
        """x [N, D] -> the inputs of the convolutions, named as in `tails` (without convolutions: q, k, v)."""

    @abstractmethod
    def convolve(
        self, projected: dict[str, Tensor], held: dict[str, Tensor], layout: Layout
    ) -> tuple[list[Tensor], dict[str, short_convolution.Tails]]:
        """q, k [N, H K], v [N, J V] in at least float32 (16-bit where they are `fused`), and the inputs that may be
        tapped; `held`: the memory."""

    def fused(self, x: Tensor) -> bool:
        """Whether fla's kernels make the passes over x, one of its 16-bit tensors."""
        return self.uses_kernels and passes.fused(x.device, x.dtype)

    def normalised(self, x: Tensor) -> Tensor:
        """q or k [N, H, K] after convolution and SiLU, where that is the activation -> any other, then norm; here: unit
        length."""
        return passes.unit_length(x) if self.fused(x) else unit_length(x)

    @abstractmethod
    def rates(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """x [N, D] -> beta [N, J] (how much of its error each token writes), log decay [N, J], of each key channel
        [N, J, K], or None, in `dtype`."""

    @property
    @abstractmethod
    def output_norm(self) -> RMSNorm:
        """The norm of each value head's output."""

    @property
    @abstractmethod
    def output_projection(self) -> nn.Module:
        """From the values of all heads [N, J V] to [N, D]."""

    @abstractmethod
    def output_gate(self, x: Tensor) -> Tensor | None:
        """x [N, D] -> [N, J V], before its activation; None: there is no gate."""

    def output(self, x: Tensor, o: Tensor) -> Tensor:
        """x [N, D], o [N, J, V] of the delta rule -> [N, D]: norm, gate and output projection."""
        gate = self.output_gate(x)
        gate = None if gate is None else gate.view(o.shape)
        dtype = compute_dtype(x)
        if o.dtype == dtype and self.fused(o):
            y = passes.normed(self.output_norm, o, gate, self.gate_activation)
        else:
            y = self.output_norm(o, dtype if dtype.itemsize == 2 else o.dtype, gate, self.gate_activation)
        return without_keeping(self.output_projection, y.flatten(1).to(dtype))

    def forward(self, x: Tensor, layout: Layout, memory: LayerMemory | None, keep: Keep) -> tuple[Tensor, Trace]:
        held, state, sharing = self._held(memory)
        projected = self.project(x)
        beta, log_decay = self.rates(x, wide(x.dtype))
        with torch.autocast(x.device.type, enabled=False):
            (q, k, v), tails = self.convolve(projected, held, layout)
            # under autocast x is the float32 residual stream; the kernels are given what the projections are made in
            dtype = next(iter(projected.values())).dtype
            o, states = self.apply_rule((q, k, v), RuleInputs(beta, log_decay, state, sharing, layout, dtype))
        return self.output(x, o), self._trace(DeltaTrace(states, tails, self.steps), layout, memory, keep)

    def apply_rule(self, convolved: tuple[Tensor, Tensor, Tensor], given: RuleInputs) -> tuple[Tensor, States]:
        """Normalise q and k, and apply the delta rule to them, v and what else is `given` -> o [N, J, V], the states.

        convolved: q, k, v from `convolve`.
        """
        q, k, v = self.by_head(convolved)
        return self._rule(self.normalised(q), self.normalised(k), v, given)

    def by_head(self, convolved: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """q [N, H K], k, v -> q [N, H, K], k [N steps, H, K], v [N steps, J, V]."""
        q, k = (y.reshape(-1, self.heads, self.key) for y in convolved[:2])
        return q, k, convolved[2].reshape(-1, self.value_heads, self.value)

    def fresh(self, rows: int, device: torch.device, dtype: torch.dtype) -> TensorMemory:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(rows, *shape, device=device, dtype=wide(dtype))

        tails = {name: zeros(self.conv_size - 1, width) for name, width in self.tails.items()}
        return TensorMemory({"state": zeros(self.value_heads, self.key, self.value), **tails})

    def _held(self, memory: LayerMemory | None) -> tuple[dict[str, Tensor], Tensor | None, int]:
        """Of the memory: the tails of each row; the states, each once; how many rows in a row share one."""
        if memory is None:
            return {}, None, 1
        assert isinstance(memory, TensorMemory)
        return {name: memory[name] for name in self.tails}, *memory.shared_in_order("state")

    def _rule(self, q: Tensor, k: Tensor, v: Tensor, given: RuleInputs) -> tuple[Tensor, States]:
        """o [N, J, V] and the states; by fla's kernels if they read the dtype, else by PyTorch in at least float32."""
        beta, log_decay, state, sharing, layout, dtype = given
        if not fla.reads(q.device, dtype, log_decay, q, k, v, beta, state):
            size = delta_rule.CHUNK // self.steps * self.steps  # no token's steps are in two chunks
            q, k, v = (x.to(wide(x.dtype)) for x in (q, k, v))
            return delta_rule.read(q, k, v, beta, log_decay, state, layout, sharing, size)
        if state is not None:
            state = delta_rule.laid_out(state, sharing)
        every = fla.EVERY // self.steps * self.steps
        o, states = fla.read(q.to(dtype), k.to(dtype), v.to(dtype), beta, log_decay, state, layout, every)
        return o, states

    def _trace(self, trace: DeltaTrace, layout: Layout, memory: LayerMemory | None, keep: Keep) -> Trace:
        if isinstance(trace.states, Ends):
            return trace
        if keep is Keep.SPARSE:
            return SparseDeltaTrace(self, trace, layout, memory)
        if keep is Keep.ENDS and trace.states.chunks.total > layout.documents:
            # computed now, which costs a small product: else all tensors of the read would stay in memory
            ends = layout.once("ends", lambda: Taps.ends(layout))
            return EndsOnly(trace.tap(ends, None), ends)
        return trace


class DeltaMixer(DeltaRuleMixer):
    """The layer in flash-linear-attention's format: a projection and a convolution for each of q, k and v.

    `silu_keys`: whether SiLU is the activation of q and k. The activation of v is always SiLU.
    """

    silu_keys = True

    def __init__(
        self,
        hidden: int,
        heads: int,
        value_heads: int,
        key: int,
        value: int,
        conv_size: int,
        gated_output: bool,
        norm_eps: float,
        steps: int = 1,
    ) -> None:
        widths = {"q": heads * key, "k": steps * heads * key, "v": steps * value_heads * value}
        super().__init__(heads, value_heads, key, value, conv_size, widths)
        self.steps = steps
        self.q_proj = nn.Linear(hidden, widths["q"], bias=False)
        self.k_proj = nn.Linear(hidden, widths["k"], bias=False)
        self.v_proj = nn.Linear(hidden, widths["v"], bias=False)
        if conv_size:
            self.q_conv1d = ShortConvolution(widths["q"], conv_size)
            self.k_conv1d = ShortConvolution(widths["k"], conv_size)
            self.v_conv1d = ShortConvolution(widths["v"], conv_size)
        if gated_output:
            self.g_proj: nn.Module = nn.Linear(hidden, value_heads * value, bias=False)
        self.o_norm = RMSNorm(value, norm_eps)
        self.o_proj = nn.Linear(value_heads * value, hidden, bias=False)

    @property
    def output_norm(self) -> RMSNorm:
        return self.o_norm

    @property
    def output_projection(self) -> nn.Module:
        return self.o_proj

    def output_gate(self, x: Tensor) -> Tensor | None:
        return without_keeping(self.g_proj, x) if hasattr(self, "g_proj") else None

    def project(self, x: Tensor) -> dict[str, Tensor]:
        return {name: without_keeping(getattr(self, f"{name}_proj"), x) for name in "qkv"}

    def convolve(
        self, projected: dict[str, Tensor], held: dict[str, Tensor], layout: Layout
    ) -> tuple[list[Tensor], dict[str, short_convolution.Tails]]:
        silu = {"q": self.silu_keys, "k": self.silu_keys, "v": True}
        if not self.conv_size:
            precise = {name: y.to(wide(y.dtype)) for name, y in projected.items()}
            return [F.silu(y) if silu[name] else y for name, y in precise.items()], {}
        convolutions = {"q": self.q_conv1d, "k": self.k_conv1d, "v": self.v_conv1d}
        both = {
            name: convolutions[name](y, held.get(name), layout, silu[name], self.fused(y))
            for name, y in projected.items()
        }
        return [y for y, _ in both.values()], {name: tails for name, (_, tails) in both.items()}
