"""What a language model is made of: MLP, block, and the stack of blocks between embedding and final norm.

Shape legend: B rows · T tokens of a row · N real tokens · D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig

from refine.models.recomputation import contexts
from refine.models.token_mixer import EndsOnly, Keep, LayerMemory, MixerInputs, TokenMixer, Trace
from refine.ops import row_groups
from refine.ops.autocast import compute_dtype
from refine.ops.layout import Layout, Taps
from refine.ops.made_again import without_keeping
from refine.ops.rms_norm import RMSNorm
from refine.ops.swiglu import swiglu


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x). Inner size as fla's: `intermediate_size`, or 2/3 hidden_ratio D up to the next 256."""

    only_multiplies = True
    steady = True  # see TokenMixer

    def __init__(self, config: PreTrainedConfig, inner: int | None = None) -> None:
        """inner: another inner size than the config's."""
        super().__init__()
        inner = config.intermediate_size if inner is None else inner
        if inner is None:
            inner = 256 * ((int(config.hidden_size * (config.hidden_ratio or 4) * 2 / 3) + 255) // 256)
        self.gate_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.down_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, D] -> [N, D]. Without gradient a CPU goes through x in parts, so that what lies between the products
        stays in a core's cache."""
        parts = [] if torch.is_grad_enabled() else row_groups.blocks(x, numbers=self.gate_proj.out_features)
        return torch.cat([self._of(x[part]) for part in parts]) if len(parts) > 1 else self._of(x)

    def _of(self, x: Tensor) -> Tensor:
        inner = swiglu(without_keeping(self.gate_proj, x), without_keeping(self.up_proj, x))
        return without_keeping(self.down_proj, inner)


@dataclass(frozen=True)
class BlockNames:
    """What a block's modules are called in published models, and where its norms stand.

    `norms`: of the mixer and of the MLP. `after`: they stand after them, x + norm(f(x)), not before, x + f(norm(x)).
    `mlp`: the MLP, or the mixture of experts in its place.
    """

    mixer: str = "attn"
    norms: tuple[str, str] = ("attn_norm", "mlp_norm")
    after: bool = False
    mlp: str = "mlp"


class Block(nn.Module):
    """x + mixer(norm x), then x + mlp(norm x); or, with norms `after`, x + norm(mixer x), then x + norm(mlp x)."""

    def __init__(
        self, mixer: TokenMixer, mlp: nn.Module, norms: tuple[nn.Module, nn.Module], names: BlockNames
    ) -> None:
        super().__init__()
        self.names = names
        self.add_module(names.norms[0], norms[0])
        self.add_module(names.mixer, mixer)
        self.add_module(names.norms[1], norms[1])
        self.add_module(names.mlp, mlp)

    @property
    def mixer(self) -> TokenMixer:
        """The token mixer, whatever its name."""
        return cast(TokenMixer, self.get_submodule(self.names.mixer))

    def forward(
        self,
        x: Tensor | None,
        layout: Layout | None,
        memory: LayerMemory | None,
        keep: Keep,
        instead: Callable[[Any], LayerMemory] | None = None,
    ) -> tuple[Any, Any]:
        """x [N, D] -> [N, D] and the mixer's trace. Or, for `inside`, `instead(x)` and its tensors."""
        if instead is not None:
            made = instead(x)
            return made, _tensors(made)
        assert x is not None and layout is not None
        first, second = (getattr(self, name) for name in self.names.norms)
        mlp = self.get_submodule(self.names.mlp)
        if self.names.after:
            y, trace = self.mixer(x, layout, memory, keep)
            x = x + first(y)
            return x + second(mlp(x)), trace
        y, trace = self.mixer(_normed(first, x, self.mixer), layout, memory, keep)
        x = x + y
        return x + mlp(_normed(second, x, mlp)), trace

    def inside(self, function: Callable[[Any], LayerMemory], x: Tensor | None = None) -> LayerMemory:
        """`function(x)`, which uses the block's parameters, inside a call of the block.

        A wrapper such as FSDP2 has whole parameters only inside such a call. It finds `x` and the memory's tensors, and
        prepares the parameters again before a gradient reaches these tensors.
        """
        memory: LayerMemory = self(x, None, None, Keep.ENDS, function)[0]
        return memory

    def mixer_inputs(self, x: Tensor, index: Tensor) -> Tensor:
        """The mixer's inputs [M, D] for tokens `index` [M] of the block input x [N, D]."""
        chosen = x.index_select(0, index)
        return chosen if self.names.after else _normed(getattr(self, self.names.norms[0]), chosen, self.mixer)


def _normed(norm: nn.Module, x: Tensor, reader: nn.Module) -> Tensor:
    """norm(x) [N, D]; in the dtype of products where `reader` says that it `only_multiplies` it by matrices.

    Under autocast each matrix would round a float32 norm again, and keep its copy for the backward pass.
    """
    if isinstance(norm, RMSNorm) and getattr(reader, "only_multiplies", False):
        return norm(x, compute_dtype(x))  # type: ignore[no-any-return]
    return norm(x)  # type: ignore[no-any-return]


def _tensors(memory: LayerMemory) -> list[Tensor]:
    """The tensors that `memory` holds, themselves."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    memory.map(note)
    return found


class InsideBlock(Trace):
    """A trace of a read under gradient checkpointing, whose taps run inside `block`: they use its parameters.

    `x` [N, D]: the block's input.
    """

    def __init__(self, trace: Trace, block: Block, x: Tensor) -> None:
        self.trace, self.block, self.x = trace, block, x

    def tap(self, taps: Taps, inputs: MixerInputs | None = None) -> LayerMemory:
        return self.block.inside(lambda x: self.trace.tap(taps, partial(self.block.mixer_inputs, x)), self.x)


class Backbone(nn.Module):
    """Embeddings, blocks and final norm: returns hidden states, and one trace for each layer.

    `embeddings_name`: what the embedding is called in published models.
    """

    def __init__(
        self, embeddings: nn.Module, blocks: Sequence[Block], norm: nn.Module, embeddings_name: str = "embeddings"
    ) -> None:
        super().__init__()
        self.embeddings_name = embeddings_name
        self.add_module(embeddings_name, embeddings)
        self.layers = nn.ModuleList(blocks)
        self.norm = norm
        self.gradient_checkpointing = False  # set by PreTrainedModel.gradient_checkpointing_enable

    @property
    def embedding(self) -> nn.Embedding:
        """The embedding of tokens, whatever its name."""
        return cast(nn.Embedding, self.get_submodule(self.embeddings_name))

    def forward(
        self, x: Tensor, layout: Layout, memory: list[LayerMemory] | None, keep: Keep, taps: Taps | None, ends: Taps
    ) -> tuple[Tensor, list[Trace], list[LayerMemory] | None]:
        """x [N, D] embeddings -> hidden [N, D], and of each layer: trace; memory at `taps` (or None)."""
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()
        kept = Keep.ALL if taps is not None else keep
        if kept is Keep.ALL and recompute:
            kept = Keep.SPARSE
        traces: list[Trace] = []
        tapped: list[LayerMemory] | None = None if taps is None else []
        for number, layer in enumerate(self.layers):
            block = cast(Block, layer)
            before = memory[number] if memory is not None else None
            given = x
            if recompute:
                x, trace = checkpoint(
                    block, x, layout, before, kept, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
                )
            else:
                x, trace = block(x, layout, before, kept)
            if kept is Keep.SPARSE:
                trace = InsideBlock(trace, block, given)
            if taps is not None and tapped is not None:
                tapped.append(trace.tap(taps, None))
                if keep is Keep.ENDS and not torch.is_grad_enabled():
                    # without a graph only the trace holds the read: free it
                    trace = EndsOnly(trace.tap(ends, None), ends)
            traces.append(trace)
        return self.norm(x), traces, tapped
