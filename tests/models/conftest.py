"""The small models of these tests, and how two results are compared.

A model joins every test of this folder by an entry in CONFIGS of configs.py. B rows · T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import refine.models
from refine.models import FastWeightLanguageModel, Memory
from refine.ops.rms_norm import ZeroCentredRMSNorm
from tests.models.configs import CONFIGS, VARIANTS, VOCABULARY

BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5}  # seen: 3e-13 (with Muon; else 1e-13) and 7e-6


def make_model(config: dict[str, Any], dtype: torch.dtype = torch.float64, seed: int = 0) -> FastWeightLanguageModel:
    """A model whose every part matters: weights far larger than at initialisation, yet not so large that float32
    rounding itself exceeds the bound."""
    torch.manual_seed(seed)
    model = refine.models.from_config(
        {"vocab_size": VOCABULARY, "intermediate_size": 48, "eos_token_id": None, **config}
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "conv1d" not in name:
                parameter.normal_(0, 0.5 * parameter.shape[-1] ** -0.5)
            elif "conv1d" in name:
                parameter.normal_(0, 0.25)
            elif name.endswith("lr_proj.bias"):  # LaCT's own initial rate, 0.001, would hide its updates in rounding
                parameter.uniform_(3, 6)
            elif name.endswith("e_score_correction_bias"):
                parameter.uniform_(-0.3, 0.3)
            elif name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
        for module in model.modules():
            if isinstance(module, ZeroCentredRMSNorm):
                module.weight.sub_(1)
        if "A_log" in "".join(dict(model.named_parameters())):
            for block in model.model.layers:
                if hasattr(block.mixer, "A_log"):
                    block.mixer.A_log.uniform_(-2, 1)
    return model.to(dtype)


@pytest.fixture(params=list(CONFIGS))
def name(request: pytest.FixtureRequest) -> str:
    """Each kind of model in turn."""
    return request.param


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Each dtype that has a bound."""
    return request.param


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> FastWeightLanguageModel:
    """Each option that changes a layer's mathematics, in float64."""
    return make_model(VARIANTS[request.param])


@pytest.fixture
def model(name: str, dtype: torch.dtype) -> FastWeightLanguageModel:
    """A model of each kind in each dtype."""
    return make_model(CONFIGS[name], dtype)


@pytest.fixture
def build() -> Callable[..., FastWeightLanguageModel]:
    """make_model, for tests that choose the config."""
    return make_model


def layered(config: dict[str, Any], layers: int) -> dict[str, Any]:
    """A config with another number of layers; of Kimi Linear, which lists them, every second attends."""
    made = {**config, "num_hidden_layers": layers}
    if "linear_attn_config" in config:
        kinds = {"kda_layers": list(range(1, layers + 1, 2)), "full_attn_layers": list(range(2, layers + 1, 2))}
        made["linear_attn_config"] = {**config["linear_attn_config"], **kinds}
    return made


@pytest.fixture
def with_layers() -> Callable[[dict[str, Any], int], dict[str, Any]]:
    """layered, as a fixture."""
    return layered


@pytest.fixture
def configs() -> dict[str, dict[str, Any]]:
    """CONFIGS, for tests that need them all."""
    return CONFIGS


def distance(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖ (‖a‖ where b is 0)."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / (b.norm() if b.any() else 1))


def cancelling(name: str, gradients: dict[str, Tensor]) -> int:
    """By how much more two float32 gradients of Gated DeltaNet's A_log and dt_bias may differ than others.

    These are two numbers a layer, sums over all tokens of terms that nearly cancel. Over 20 seeds, one unit in the last
    place of every embedding moves them by up to 2.1e-5, and reading token by token by up to 2.0e-5: float32 allows no
    better. With all else in float64 that rounding of the embeddings alone moves them by up to 8e-6 (6 seeds). In a
    stack with attention, as OLMo Hybrid, whose beta goes up to 2, reading token by token moves them by up to 9.7e-5.
    Comba's decay and D are two such numbers, too: reading token by token moves them by up to 2.6e-5 (4 seeds).
    """
    if gradients[name].dtype != torch.float32 or not name.endswith(("A_log", "dt_bias", ".decay", ".D")):
        return 1
    return 12 if any("q_norm" in key for key in gradients) else 6


class Compare:
    """Asserts that two results agree within the bound of their dtype."""

    distance = staticmethod(distance)

    def tensors(self, a: Tensor, b: Tensor, what: str = "") -> None:
        assert a.shape == b.shape, f"{what}: {tuple(a.shape)} against {tuple(b.shape)}"
        assert distance(a, b) <= BOUNDS.get(b.dtype, 0), f"{what}: {distance(a, b):.2e}"

    def memories(self, a: Memory, b: Memory) -> None:
        assert a.positions.tolist() == b.positions.tolist()
        for number, (one, other) in enumerate(zip(a.layers, b.layers, strict=True)):
            for key, tensor in one.tensors().items():
                self.tensors(tensor, other.tensors()[key], f"layer {number} {key}")

    def gradients(self, a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
        assert a.keys() == b.keys()
        for key in a:
            apart, bound = distance(a[key], b[key]), BOUNDS.get(b[key].dtype, 0) * cancelling(key, b)
            assert apart <= bound, f"gradient of {key}: {apart:.2e}"


@pytest.fixture
def compare() -> Compare:
    """How two results are compared."""
    return Compare()


@pytest.fixture
def tokens() -> Callable[..., Tensor]:
    """Random tokens [B, T]."""

    def draw(rows: int, length: int, seed: int = 1) -> Tensor:
        return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))

    return draw


@pytest.fixture
def weigh() -> Callable[[Any], Tensor]:
    """A scalar that depends on every number of a tensor or memory, each differently: the loss of gradient tests."""

    def scalar(*results: Any) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for result in results:
            parts = (
                [result]
                if isinstance(result, Tensor)
                else [t for layer in result.layers for t in layer.tensors().values()]
            )
            for part in parts:
                if part.is_floating_point():
                    phase = torch.arange(part.numel(), dtype=torch.float64).view(part.shape)
                    total = total + (part.double() * torch.sin(phase + 1)).sum()
        return total

    return scalar


@pytest.fixture
def gradients_of() -> Callable[[FastWeightLanguageModel, Tensor], dict[str, Tensor]]:
    """The gradient of a loss with respect to every parameter that has one."""

    def run(model: FastWeightLanguageModel, loss: Tensor) -> dict[str, Tensor]:
        parameters = {key: p for key, p in model.named_parameters() if p.requires_grad}
        grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, retain_graph=True)
        return {
            key: g if g is not None else torch.zeros_like(p)
            for (key, p), g in zip(parameters.items(), grads, strict=True)
        }

    return run
