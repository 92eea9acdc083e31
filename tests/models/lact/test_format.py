"""LaCT in the public release's format: sizes, names, initial weights, and refusal by name of what is not there."""

import pytest
import torch

import refine.models
from refine.errors import ModelError

TINY = {
    "model_type": "lact_swiglu",
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attn_heads": 4,
    "num_lact_heads": 2,
    "lact_chunk_size": 8,
    "window_size": 11,
}
PUBLISHED = {  # the 760M model of the paper
    "model_type": "lact_swiglu",
    "hidden_size": 1536,
    "num_hidden_layers": 24,
    "num_attn_heads": 24,
    "num_lact_heads": 4,
    "lact_chunk_size": 2048,
    "window_size": 2048,
    "w0_w2_low_rank": 32,
    "use_momentum": True,
    "learnable_ttt_scale": True,
    "rope_theta": 1e6,
    "vocab_size": 32000,
    "lr_dim": 1,
    "ttt_loss_type": "dot_product",
    "lr_parameterization": "mamba",
    "fuse_norm": True,
    "last_layer_fuse_norm": True,
    "fuse_swiglu": True,
    "fuse_cross_entropy": True,
}


def test_the_published_760m_model_has_its_size_and_names():
    with torch.device("meta"):
        model = refine.models.from_config(PUBLISHED)
    assert 797e6 < sum(p.numel() for p in model.parameters()) < 799e6
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    layer = {
        name.removeprefix("model.layers.23."): shape
        for name, shape in shapes.items()
        if name.startswith("model.layers.23.")
    }
    assert layer == {
        "attn.qkv.weight": (4608, 1536), "attn.o_proj.weight": (1536, 1536),
        "attn.w0.w_left": (4, 384, 32), "attn.w0.w_right": (4, 32, 384), "attn.w1": (4, 384, 384),
        "attn.w2.w_left": (4, 384, 32), "attn.w2.w_right": (4, 32, 384),
        "attn.lr_proj.weight": (12, 1536), "attn.lr_proj.bias": (12,),
        "attn.qk_scale": (1536, 2), "attn.qk_offset": (1536, 2), "attn.ttt_norm.weight": (384,),
        "attn.ttt_scale_proj.weight": (4, 1536), "attn.ttt_scale_proj.bias": (4,),
        "attn.momentum_proj.0.weight": (4, 1536), "attn.momentum_proj.0.bias": (4,),
        "attn_norm.weight": (1536,), "mlp_norm.weight": (1536,),
        "mlp.gate_proj.weight": (4096, 1536), "mlp.up_proj.weight": (4096, 1536), "mlp.down_proj.weight": (1536, 4096),
    }  # fmt: skip
    assert {name for name in shapes if "layers" not in name} == {
        "model.embeddings.weight",
        "model.norm.weight",
        "lm_head.weight",
    }


def test_full_fast_weights_qk_norm_and_bias_have_the_published_names(build):
    names = {
        name
        for name, _ in build({**TINY, "attn_qk_norm": True, "qkv_bias": True}).model.layers[0].attn.named_parameters()
    }
    assert {"w0", "w1", "w2", "q_norm.weight", "k_norm.weight", "qkv.bias"} <= names


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("lr_dim", 24, "only one learning rate"),
        ("lr_parameterization", "sigmoid", "expected 'mamba'"),
        ("ttt_loss_type", "l2", "expected 'dot_product'"),
        ("hidden_act", "gelu", "expected 'swish' or 'silu'"),
        ("window_size", None, "expected a whole number above 0"),
        ("lact_chunk_size", 0, "expected a whole number above 0"),
        ("num_lact_heads", 5, "expected a divisor of 24"),
        ("num_attn_heads", 8, "heads of even width"),
        ("rope_theta", -1.0, "expected a number above 0"),
        ("rope_scaling", {"type": "yarn"}, "only None is implemented"),
        ("ttt_hidden_rope", True, "unknown to lact_swiglu"),
    ],
)
def test_what_a_config_asks_for_and_we_do_not_have_is_refused_by_name(field, value, reason):
    with pytest.raises(ModelError, match=rf"{field} is .*{reason}"):
        refine.models.from_config({**TINY, "vocab_size": 61, field: value})


def test_a_saved_config_has_the_releases_fields_and_no_other(build, tmp_path):
    build(TINY).save_pretrained(tmp_path)
    again = refine.models.from_pretrained(tmp_path)
    assert again.config.window_size == 11
    assert "muon_dtype" not in (tmp_path / "config.json").read_text()
    build({**TINY, "use_muon": True, "muon_dtype": "bfloat16"}).save_pretrained(tmp_path)
    assert refine.models.from_pretrained(tmp_path).model.layers[0].attn.rule.muon_dtype == torch.bfloat16


def test_a_new_model_starts_with_the_releases_initial_weights():
    torch.manual_seed(0)
    config = {**PUBLISHED, "num_hidden_layers": 1, "hidden_size": 256, "num_attn_heads": 4, "vocab_size": 61}
    layer = refine.models.from_config(config).model.layers[0].attn
    width, rank = 64, 32
    assert layer.w1.std().item() == pytest.approx(width**-0.5, rel=0.05)
    assert layer.w0.w_left.std().item() == pytest.approx(0.5 * rank**-0.5, rel=0.05)
    assert layer.w2.w_right.std().item() == pytest.approx(0.5 * width**-0.5, rel=0.05)
    assert layer.qkv.weight.std().item() == pytest.approx(0.006, rel=0.05)
    assert (layer.qk_scale == 1).all() and not layer.qk_offset.any() and not layer.lr_proj.bias.any()
