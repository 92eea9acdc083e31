"""A family that CONTRIBUTING.md ("To add a family of models") describes, made up here: all that its file must hold.

If this needs more than CONTRIBUTING says, change CONTRIBUTING.
"""

from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import refine.models
from refine.errors import ModelError
from refine.models.attention.mixer import Attention
from refine.models.blocks import BlockNames, SwiGLU
from refine.models.delta.gated_delta_net import GatedDeltaNet
from refine.models.hybrids.configuration import ATTENTION, LINEAR, HybridConfig
from refine.models.hybrids.model import HybridForCausalLM, LayerKind, attention_of
from refine.models.hybrids.regrouping import ExpertsApart, Regrouping
from refine.models.hybrids.tensor_names import TensorNames
from refine.models.loading import MODELS
from refine.models.mixture import Experts, Mixture, SigmoidRouter
from refine.objective import ObjectiveSettings, next_sequence_step
from refine.ops.rms_norm import RMSNorm

# ---- what stands in refine/models/hybrids/made_up.py: a config, a table of layers, names on disk --------------------


class MadeUpConfig(HybridConfig):
    """config.json of `made_up`."""

    model_type = "made_up"
    legacy: ClassVar[dict[str, Any]] = {"scoring": "sigmoid"}
    without_effect: ClassVar[tuple[str, ...]] = ("mtp_layers",)
    counts: ClassVar[tuple[str, ...]] = (*HybridConfig.counts, "n_experts")
    n_experts: int = 4


def _linear(config: Any) -> GatedDeltaNet:
    heads, value_heads = config.linear_num_key_heads, config.linear_num_value_heads
    widths = config.linear_key_head_dim, config.linear_value_head_dim, config.linear_conv_kernel_dim
    return GatedDeltaNet(config.hidden_size, heads, value_heads, *widths, config.rms_norm_eps)


def _attention(config: Any) -> Attention:
    return attention_of(config, partial(RMSNorm, eps=config.rms_norm_eps), gate=True)


class MadeUpForCausalLM(HybridForCausalLM):
    """The made-up family with a language-model head: the first layer has a plain MLP, the others mixtures."""

    config_class = MadeUpConfig
    kinds: ClassVar[dict[str, LayerKind]] = {
        LINEAR: LayerKind(_linear, BlockNames("delta", ("norm_1", "norm_2"))),
        ATTENTION: LayerKind(_attention, BlockNames("attn", ("norm_1", "norm_2"))),
    }
    tensor_names = TensorNames(
        spellings=((r"^backbone\.", "model."),), ignored=((r"mtp\.", "multi-token prediction (mtp)"),)
    )

    def make_mlp(self, config: Any, layer: int) -> nn.Module:
        if layer == 0:
            return SwiGLU(config)
        router = SigmoidRouter(config.hidden_size, config.n_experts, 2, scale=2.5)
        return Mixture(config.hidden_size, router, Experts(config.hidden_size, 16, config.n_experts))

    @classmethod
    def regroupings(cls, config: Any) -> tuple[Regrouping, ...]:
        return (ExpertsApart(config.n_experts, "w1", "w3", "w2"),)


# ---- its entry in CONFIGS of tests/models/configs.py --------------------

CONFIG = {
    "model_type": "made_up",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "full_attention_interval": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}


@pytest.fixture
def model(monkeypatch, build):
    """The family in float64, registered by its line in refine/models/loading.py."""
    monkeypatch.setitem(MODELS, "made_up", MadeUpForCausalLM)
    return build(CONFIG)


def test_it_reads_in_pieces_packed_and_padded(model, tokens, compare):
    text = tokens(2, 40)
    whole = model.read(text)
    first = model.read(text[:, :17])
    after = model.read(text[:, 17:], first.memory)
    compare.tensors(torch.cat([first.hidden, after.hidden], 1), whole.hidden)
    compare.memories(after.memory, whole.memory)
    packed = model.read(text.view(1, 80), lengths=[[40, 40]]).hidden
    compare.tensors(packed.view(2, 40, -1), whole.hidden)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_tap_is_reading_again_with_its_gradient(model, tokens, compare, weigh, gradients_of, checkpointing):
    model.train().model.gradient_checkpointing = checkpointing
    text = tokens(2, 40)
    tapped = model.read(text, tappable=True).tap(torch.tensor([[9, 31], [40, 1]]))
    again = [model.read(text[b : b + 1, :n]).memory for b, n in ((0, 9), (0, 31), (1, 40), (1, 1))]
    one = model.read(tokens(4, 5, seed=3), tapped).hidden
    other = torch.cat([model.read(tokens(4, 5, seed=3)[i : i + 1], memory).hidden for i, memory in enumerate(again)])
    compare.tensors(one, other)
    compare.gradients(gradients_of(model, weigh(one)), gradients_of(model, weigh(other)))


def test_a_step_of_training_moves_every_weight(model, tokens):
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    settings = ObjectiveSettings(positions=3, rollout_length=3, min_prefix=4)
    next_sequence_step(model, tokens(2, 60), settings, torch.tensor([1, 2])).loss.backward()
    optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters() if p.requires_grad)


def test_it_goes_to_disk_and_back_in_the_names_of_the_release(model, tokens, tmp_path, compare):
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert "model.layers.1.mlp.experts.3.w3.weight" in stored and "model.layers.0.delta.q_proj.weight" in stored
    released = {name.replace("model.", "backbone.", 1): x for name, x in stored.items()}
    save_file({**released, "mtp.x": torch.ones(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    loaded, text = refine.models.from_pretrained(tmp_path), tokens(1, 30)
    compare.tensors(loaded.read(text).hidden, model.read(text).hidden)
    loaded.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == released.keys()


def test_what_it_does_not_know_is_refused_by_name(model):
    for change, message in (
        ({"scoring": "softmax"}, "scoring is 'softmax': only 'sigmoid' is implemented"),
        ({"n_expert": 5}, "n_expert is 5: unknown to made_up .did you mean 'n_experts'"),
        ({"n_experts": 0}, "n_experts is 0: expected a whole number above 0"),
    ):
        with pytest.raises(ModelError, match=message):
            refine.models.from_config({**CONFIG, "vocab_size": 61, "intermediate_size": 48, **change})
