"""The fast SwiGLU MLP of LaCT (arXiv 2505.23884): apply, then update, in large chunks.

    o_t = f(q_t),   f(x) = w1 (silu(w0 x) ∘ (w2 x))                         with the weights from before the chunk
    g_i = Σ_t rate_ti ∂<f(k_t), v_t>/∂w_i,   m_i ← g_i + mean_t(carry_t) m_i     over a complete chunk, i = 0, 1, 2
    w_i ← rescaled(w_i + muon(m_i)):  every row gets the norm that it had before the first token

Shape legend: P states · A documents that read a chunk together · n tokens of a chunk · C chunk size · H fast heads
· K width of a fast head · E inner width of the fast MLP · N tokens.

Momentum (carry) and Muon are options; without them m_i = g_i, and muon is the identity. A complete chunk moves the
weights only when the next token comes. Reading and moving are matrix products over the chunk; the gradient is written
out, so that autograd can differentiate it again.
`by_token` below is the twin: one document, token by token, its gradient by autograd.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import silu

from refine.ops.autocast import product
from refine.ops.fast_mlp.gradient import weighted_sides
from refine.ops.fast_mlp.muon import orthogonalise
from refine.ops.swiglu import swiglu_joined

State = dict[str, Tensor]
"""`gates` [P, H, 2, E, K] (w0 and w2), `out` [P, H, K, E] (w1); with prenorm `gates_sum`, `out_sum` (weights before
rescaling); with momentum `gates_momentum`, `out_momentum` (m). All in at least float32."""

Tokens = dict[str, Tensor]
"""What an update needs of each token: `keys`, `values` [N, H, K], `rates` [N, H, 3] for w0, w1, w2, and with momentum
`carry` [N, H] (sigmoid of the momentum projection). Or [A, n, ...] in place of [N, ...]."""


@dataclass(frozen=True)
class Rule:
    """How a complete chunk changes the weights. `prenorm` (ttt_prenorm): add to the weights before rescaling.

    `muon_dtype`: bfloat16 for Newton–Schulz steps as published, on gradients in the tokens' dtype. None: both run one
    precision above the tokens' (float32 for bfloat16, float64 for float32). The steps multiply the rounding of small
    singular values by up to 490, so that in a lower precision reading in another way would give another result. On a
    GPU the products of float32 for tokens in 16 bits round their factors to TF32, as the tokens are already rounded;
    float32 keeps them whole.
    """

    chunk_size: int
    momentum: bool = False
    muon: bool = False
    prenorm: bool = False
    muon_dtype: torch.dtype | None = None


def initial_state(w0: Tensor, w1: Tensor, w2: Tensor, rule: Rule) -> State:
    """The state (P = 1) before the first token, from w0, w2 [H, E, K] and w1 [H, K, E].

    A copy: a memory outlives a parameter, which an optimizer changes in place and FSDP frees after each block.
    """
    precise = torch.promote_types(w0.dtype, torch.float32)
    gates = torch.stack([w0[None], w2[None]], dim=2)
    state = {"gates": gates.to(precise), "out": w1[None].to(precise, copy=True)}
    if rule.prenorm:
        state |= {"gates_sum": state["gates"], "out_sum": state["out"]}
    if rule.momentum:
        state |= {f"{name}_momentum": torch.zeros_like(state[name]) for name in ("gates", "out")}
    return state


def row_norms(state: State) -> State:
    """The norm of each output row of the weights, [P, H, ..., 1]; every update rescales to those of the first state."""
    return {name: state[name].norm(dim=-1, keepdim=True) for name in ("gates", "out")}


def apply(state: State, queries: Tensor) -> Tensor:
    """f(q) for queries [P, n, H, K] -> [P, n, H, K]. Products run in the queries' dtype."""
    q = queries.transpose(1, 2)
    gates = state["gates"].flatten(-3, -2).to(q.dtype)
    return (swiglu_joined(q @ gates.mT) @ state["out"].to(q.dtype).mT).transpose(1, 2)


def update(state: State, tokens: Tokens, norms: State, rule: Rule) -> State:
    """The states after a complete chunk: `tokens` [A, C, ...], A = P. `norms` as from row_norms of the initial state.

    The formula is at the head of this file. Products run in the tokens' dtype, with the exception of Rule.muon_dtype.
    """
    working = working_dtype(tokens["keys"].dtype, rule)
    tf32 = rule.muon and rule.muon_dtype is None and tokens["keys"].dtype.itemsize == 2
    gradients = _gradients(state, tokens, working, tf32)
    if state["out"].device.type == "cpu" or state["out"].shape[-1] != state["out"].shape[-2]:
        return _moved(state, gradients, norms, tokens.get("carry"), rule, working, tf32)
    parts = (_together(state, _moves(rule)), _together(gradients, ("",)), _together(norms, ("",)))
    return _apart(_moved(*parts, tokens.get("carry"), rule, working, tf32))


def _moves(rule: Rule) -> tuple[str, ...]:
    """What an update changes from its earlier value, as the ends of its names in a State."""
    return ("_sum" if rule.prenorm else "", *(("_momentum",) if rule.momentum else ()))


def _together(state: State, ends: Sequence[str]) -> State:
    """Square gates and w1 as one [P, H, 3, K, K]: on a device one launch then moves all three weights."""
    return {f"all{end}": torch.cat([state[f"gates{end}"], state[f"out{end}"].unsqueeze(2)], dim=2) for end in ends}


def _apart(state: State) -> State:
    """The inverse of `_together`: views."""
    split = {name.removeprefix("all"): x.split([2, 1], dim=2) for name, x in state.items()}
    return {
        f"{part}{end}": x if part == "gates" else x.squeeze(2)
        for end, both in split.items()
        for part, x in zip(("gates", "out"), both, strict=True)
    }


def _moved(
    state: State, gradients: State, norms: State, carry: Tensor | None, rule: Rule, working: torch.dtype, tf32: bool
) -> State:
    """The states after steps along `gradients`, each weight as it is named there; carry [A, C, H]."""
    after: State = {}
    for name, step in gradients.items():
        held = state[f"{name}_sum" if rule.prenorm else name]
        precise = held.dtype
        step = step.to(torch.promote_types(working, precise))
        if rule.momentum:
            assert carry is not None
            share = carry.mean(dim=1).to(step.dtype)  # [A, H]
            step = step + state[f"{name}_momentum"] * share.reshape(*share.shape, *[1] * (step.dim() - 2))
            after[f"{name}_momentum"] = step.to(precise)
        if rule.muon:
            step = orthogonalise(step, rule.muon_dtype or working, tf32)
        weights = held + step.to(precise)
        if rule.prenorm:
            after[f"{name}_sum"] = weights
        after[name] = weights / (weights.norm(dim=-1, keepdim=True) + 1e-5) * norms[name]
    return after


def working_dtype(tokens: torch.dtype, rule: Rule) -> torch.dtype:
    """The dtype of an update's products for tokens of dtype `tokens`; see Rule.muon_dtype."""
    if not rule.muon or rule.muon_dtype is not None:
        return tokens
    return torch.float32 if tokens.itemsize == 2 else torch.float64


def _gradients(state: State, tokens: Tokens, dtype: torch.dtype, tf32: bool) -> State:
    """The gradients of sum over tokens of rate · <f(k), v>, for the gates and for w1, with products in `dtype`."""
    k, v = (tokens[name].transpose(1, 2).to(dtype) for name in ("keys", "values"))  # [A, H, C, K]
    gate_up = product(k, state["gates"].flatten(-3, -2).to(dtype).mT, tf32)
    inner = product(v, state["out"].to(dtype), tf32)
    sides, acts = weighted_sides(gate_up, inner, tokens["rates"].transpose(1, 2))
    return {"gates": product(sides.mT, k, tf32).unflatten(-2, (2, -1)), "out": product(v.mT, acts, tf32)}


def by_token(
    w0: Tensor, w1: Tensor, w2: Tensor, queries: Tensor, tokens: Tokens, rule: Rule
) -> tuple[Tensor, State, int]:
    """The twin: one document from the start. queries [N, H, K] -> f(q) [N, H, K], the state, tokens of the open chunk.

    The formulas at the head of this file, head by head; in the inputs' dtype, updates in `working_dtype`.
    """
    heads = [_HeadByToken(w0[h], w1[h], w2[h], rule) for h in range(w0.shape[0])]
    outputs = []
    for t in range(queries.shape[0]):
        now = [{name: x[t, h] for name, x in tokens.items()} for h in range(len(heads))]
        outputs.append(torch.stack([head.read(queries[t, h], now[h]) for h, head in enumerate(heads)]))
    state = {name: torch.stack([head.state()[name] for head in heads])[None] for name in heads[0].state()}
    return torch.stack(outputs), state, len(heads[0].chunk)


class _HeadByToken:
    """One fast head: weights, sums, momentum and the tokens of the open chunk."""

    def __init__(self, w0: Tensor, w1: Tensor, w2: Tensor, rule: Rule) -> None:
        self.rule = rule
        self.weights = [w0, w1, w2]
        self.initial_norms = [w.norm(dim=1, keepdim=True) for w in self.weights]
        self.sums = list(self.weights)
        self.momentum = [torch.zeros_like(w) for w in self.weights]
        self.chunk: list[Mapping[str, Tensor]] = []

    def read(self, query: Tensor, token: Mapping[str, Tensor]) -> Tensor:
        if len(self.chunk) == self.rule.chunk_size:
            self.close_chunk()
        self.chunk.append(token)
        return _fast_mlp(self.weights, query)

    def close_chunk(self) -> None:
        dtype = self.weights[0].dtype
        for i, step in enumerate([self.gradient(i) for i in range(3)]):
            if self.rule.momentum:
                carry = torch.stack([token["carry"] for token in self.chunk]).mean()
                step = step + carry * self.momentum[i]
                self.momentum[i] = step.to(dtype)
            if self.rule.muon:
                step = orthogonalise(step, self.rule.muon_dtype)
            step = step.to(dtype)
            moved = (self.sums[i] if self.rule.prenorm else self.weights[i]) + step
            self.sums[i] = moved
            self.weights[i] = moved / (moved.norm(dim=1, keepdim=True) + 1e-5) * self.initial_norms[i]
        self.chunk = []

    def gradient(self, i: int) -> Tensor:
        """The gradient for weight i of the rate-weighted sum of <f(k), v> over the open chunk, through autograd."""
        with torch.enable_grad():
            dtype = working_dtype(self.weights[0].dtype, self.rule)
            held = [(w if w.requires_grad else w.detach().requires_grad_()).to(dtype) for w in self.weights]
            free = held[i].view_as(held[i])
            through = [free if j == i else w for j, w in enumerate(held)]
            chunk = [{name: x.to(dtype) for name, x in token.items()} for token in self.chunk]
            scores = [t["rates"][i] * (_fast_mlp(through, t["keys"]) @ t["values"]) for t in chunk]
            return torch.autograd.grad(torch.stack(scores).sum(), free, create_graph=True)[0]

    def state(self) -> State:
        state = {"gates": torch.stack([self.weights[0], self.weights[2]]), "out": self.weights[1]}
        if self.rule.prenorm:
            state |= {"gates_sum": torch.stack([self.sums[0], self.sums[2]]), "out_sum": self.sums[1]}
        if self.rule.momentum:
            state |= {
                "gates_momentum": torch.stack([self.momentum[0], self.momentum[2]]),
                "out_momentum": self.momentum[1],
            }
        return state


def _fast_mlp(weights: Sequence[Tensor], x: Tensor) -> Tensor:
    w0, w1, w2 = weights
    return w1 @ (silu(w0 @ x) * (w2 @ x))
