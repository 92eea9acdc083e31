"""A mixture of experts in the place of a block's MLP: a router, experts, and an expert that every token goes through.

Shape legend: N real tokens (padding never reaches a block) · D hidden size · E experts · k experts of a token · I inner
width of an expert.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import initialization as init

from refine.models.recomputation import recomputing
from refine.ops.autocast import product
from refine.ops.mixture import experts as experts_op
from refine.ops.mixture import routing
from refine.ops.mixture.routing import Routes


@dataclass(frozen=True)
class RouterCounts:
    """What routers did, one or those of all layers: `load` [..., E] int64, tokens of each expert; `entropy` [...] of
    their probabilities, summed over tokens [nats]; `tokens` that each saw."""

    load: Tensor
    entropy: Tensor
    tokens: int

    def __add__(self, other: RouterCounts) -> RouterCounts:
        return RouterCounts(self.load + other.load, self.entropy + other.entropy, self.tokens + other.tokens)


class Router(nn.Module):
    """Sends each token to k experts. Counts what passes in training forward with gradients; `take` reads that."""

    def __init__(self, hidden: int, number: int, k: int) -> None:
        super().__init__()
        self.number, self.k = number, k
        self.weight = nn.Parameter(torch.empty(number, hidden))
        # no buffer: it is neither saved, nor cast, nor sent to other processes
        self._counted: RouterCounts | None = None

    @abstractmethod
    def routes(self, logits: Tensor) -> Routes:
        """logits [N, E], at least float32 -> the experts of each token."""

    def forward(self, x: Tensor) -> Routes:
        """x [N, D] -> the experts of each token. Computed in at least float32, under autocast too."""
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            found = self.routes(product(x.to(wide), self.weight.to(wide).T))
        if self.training and torch.is_grad_enabled() and not recomputing():
            self._count(found)
        return found

    @torch.no_grad()
    def _count(self, found: Routes) -> None:
        load = experts_op.load(found.experts, self.number)
        entropy = torch.special.entr(found.probabilities).sum()
        here, before = RouterCounts(load, entropy, found.experts.shape[0]), self._counted
        moved = before is not None and before.load.device != load.device  # nobody took what was counted elsewhere
        self._counted = here if before is None or moved else before + here

    def take(self) -> RouterCounts | None:
        """What was counted since the last call, on the device; None: no token passed."""
        found, self._counted = self._counted, None
        return found

    def reset(self, std: float) -> None:
        """Initial values."""
        init.normal_(self.weight, 0.0, std)


class SoftmaxRouter(Router):
    """See routing.by_softmax."""

    def __init__(self, hidden: int, number: int, k: int, normalised: bool = True) -> None:
        super().__init__(hidden, number, k)
        self.normalised = normalised

    def routes(self, logits: Tensor) -> Routes:
        return routing.by_softmax(logits, self.k, self.normalised)


class SigmoidRouter(Router):
    """See routing.by_sigmoid. `e_score_correction_bias` [E] is a parameter without gradient."""

    def __init__(
        self,
        hidden: int,
        number: int,
        k: int,
        groups: int = 1,
        best_groups: int = 1,
        normalised: bool = True,
        scale: float = 1.0,
    ) -> None:
        super().__init__(hidden, number, k)
        self.groups, self.best_groups, self.normalised, self.scale = groups, best_groups, normalised, scale
        self.e_score_correction_bias = nn.Parameter(torch.empty(number), requires_grad=False)

    def routes(self, logits: Tensor) -> Routes:
        bias = self.e_score_correction_bias
        return routing.by_sigmoid(logits, bias, self.k, self.groups, self.best_groups, self.normalised, self.scale)

    def reset(self, std: float) -> None:
        super().reset(std)
        init.zeros_(self.e_score_correction_bias)


class Experts(nn.Module):
    """E SwiGLUs, their matrices laid together as transformers' 5 names and stores them."""

    def __init__(self, hidden: int, inner: int, number: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(number, 2 * inner, hidden))
        self.down_proj = nn.Parameter(torch.empty(number, hidden, inner))

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """x [N, D], chosen [N, k] int64, weights [N, k] -> [N, D]."""
        return experts_op.mix(x, self.gate_up_proj, self.down_proj, chosen, weights)

    def reset(self, std: float) -> None:
        """Initial values."""
        init.normal_(self.gate_up_proj, 0.0, std)
        init.normal_(self.down_proj, 0.0, std)


@dataclass(frozen=True)
class Shared:
    """The expert of every token: its module, its published name, and whether sigmoid(`gate` x) weighs it."""

    expert: nn.Module
    name: str = "shared_expert"
    gate: str | None = "shared_expert_gate"


class Mixture(nn.Module):
    """sum over its experts of weight · expert(x), plus the shared expert. No auxiliary loss."""

    def __init__(self, hidden: int, router: Router, experts: Experts, shared: Shared | None = None) -> None:
        super().__init__()
        self.gate, self.experts = router, experts
        self.shared_name: str | None = None if shared is None else shared.name
        self.shared_gate: str | None = None if shared is None else shared.gate
        if shared is not None:
            self.add_module(shared.name, shared.expert)
            if shared.gate is not None:
                self.add_module(shared.gate, nn.Linear(hidden, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """x [N, D] -> [N, D]."""
        found = self.gate(x)
        y = self.experts(x, found.experts, found.weights)
        if self.shared_name is None:
            return y
        everyone = getattr(self, self.shared_name)(x)
        if self.shared_gate is not None:
            everyone = getattr(self, self.shared_gate)(x).sigmoid() * everyone
        return y + everyone


def routers(model: nn.Module) -> list[Router]:
    """The routers of a model, or of a wrapper of one, from its first layer to its last."""
    return [module for module in model.modules() if isinstance(module, Router)]


def take_counts(model: nn.Module) -> RouterCounts | None:
    """What the routers of `model` counted since the last call, layer by layer, on the device. None: the model has no
    mixtures, or read nothing in training."""
    found = [one for router in routers(model) if (one := router.take()) is not None]
    if not found:
        return None
    load, entropy = (torch.stack([getattr(one, name) for one in found]) for name in ("load", "entropy"))
    return RouterCounts(load, entropy, found[0].tokens)
