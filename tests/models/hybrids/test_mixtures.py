"""Qwen3.5-MoE and Qwen3-Next from disk to disk: both spellings of experts, shards, released sizes, what is refused."""

import json
import logging

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import refine.models
from refine.errors import ModelError
from refine.models.mixture import Mixture, take_counts

CLASSES = {"qwen3_5_moe": "Qwen3_5MoeForCausalLM", "qwen3_next": "Qwen3NextForCausalLM"}
RELEASED = {"qwen3_5_moe_text": (34.66e9, 40), "qwen3_next": (79.67e9, 48)}  # parameters, layers


@pytest.fixture(params=list(CLASSES))
def kind(request):
    """Each family of mixtures."""
    return request.param


def fuse(folder, experts=5):
    """Lay the experts of a folder together, as newer releases store them."""
    tensors = load_file(folder / "model.safetensors")
    for where in {name.split(".experts.")[0] for name in tensors if ".experts." in name}:
        parts = {
            one: [tensors.pop(f"{where}.experts.{e}.{one}_proj.weight") for e in range(experts)]
            for one in ("gate", "up", "down")
        }
        gate_up = [torch.cat(pair) for pair in zip(parts["gate"], parts["up"], strict=True)]
        tensors[f"{where}.experts.gate_up_proj"] = torch.stack(gate_up)
        tensors[f"{where}.experts.down_proj"] = torch.stack(parts["down"])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@torch.no_grad()
def test_experts_laid_together_are_read_and_saved_so(kind, theirs, tokens, tmp_path):
    text, model = tokens(2, 40), theirs(kind)
    model.save_pretrained(tmp_path / "apart")
    model.save_pretrained(tmp_path / "fused")
    fuse(tmp_path / "fused")
    apart, fused = (refine.models.from_pretrained(tmp_path / name) for name in ("apart", "fused"))
    assert torch.equal(apart(text).logits, fused(text).logits)
    fused.save_pretrained(tmp_path / "saved")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("saved", "fused"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    again, report = getattr(transformers, CLASSES[kind]).from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(again(text).logits, model(text).logits)


def test_a_new_model_is_saved_as_transformers_saves_its_own(kind, theirs, tmp_path):
    model = theirs(kind)
    model.save_pretrained(tmp_path / "theirs")
    refine.models.from_config(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert {name: x.shape for name, x in one.items()} == {name: x.shape for name, x in other.items()}
    ours, expected = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "theirs"))
    assert {name: value for name, value in ours.items() if name in expected} == expected | {"dtype": ours["dtype"]}


def test_a_state_comes_shard_by_shard_wherever_experts_are_cut(kind, theirs, tmp_path):
    """As Trainer resumes from shards: it puts one after the other into the model."""
    theirs(kind).save_pretrained(tmp_path)
    expected = refine.models.from_pretrained(tmp_path)
    model, whole = refine.models.from_config(tmp_path), load_file(tmp_path / "model.safetensors")
    names = sorted(whole)
    for number in range(7):
        model.load_state_dict({name: whole[name] for name in names[number::7]}, strict=False)
    for name, parameter in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], parameter), name
    model.load_state_dict(whole)
    with pytest.raises(RuntimeError, match=r"Missing key.*experts\.gate_up_proj"):
        refine.models.from_config(tmp_path).load_state_dict(
            {name: whole[name] for name in names if ".3.up_" not in name}
        )


DAMAGE = {
    "a missing expert": (
        lambda t: {name: x for name, x in t.items() if ".0.mlp.experts.3.up_proj" not in name},
        r"lack model\.layers\.0\.mlp\.experts\.3\.up_proj\.weight, which",
    ),
    "an expert too many": (
        lambda t: {**t, "model.layers.0.mlp.experts.5.up_proj.weight": torch.ones(24, 40)},
        r"hold model\.layers\.0\.mlp\.experts\.5\.up_proj\.weight, which",
    ),
    "an expert of another size": (
        lambda t: {**t, "model.layers.0.mlp.experts.2.down_proj.weight": torch.ones(40, 23)},
        r"experts\.2\.down_proj\.weight has shape \[40, 23\], config\.json asks for \[40, 24\]",
    ),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_damaged_experts_are_named_as_they_are_in_the_file(kind, theirs, damage, tmp_path):
    theirs(kind).save_pretrained(tmp_path)
    change, message = DAMAGE[damage]
    save_file(change(load_file(tmp_path / "model.safetensors")), tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=message) as caught:
        refine.models.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_the_text_part_of_a_multimodal_mixture_is_read(theirs, tokens, tmp_path, caplog):
    text, words = theirs("qwen3_5_moe"), tokens(1, 30)
    text.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    more = {"mtp_num_hidden_layers": 1, "full_attention_interval": 4, "attn_output_gate": True, "mlp_only_layers": []}
    outer = {"model_type": "qwen3_5_moe", "vision_config": {"depth": 1}, "text_config": {**config, **more}}
    (tmp_path / "config.json").write_text(json.dumps(outer))
    fuse(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    inner = {name.replace("model.", "model.language_model.", 1): x for name, x in tensors.items()}
    others = {"model.visual.patch.weight": torch.ones(3), "mtp.layers.0.mlp.experts.gate_up_proj": torch.ones(2)}
    save_file({**inner, **others}, tmp_path / "model.safetensors", {"format": "pt"})
    with caplog.at_level(logging.WARNING):
        model = refine.models.from_pretrained(tmp_path)
    said = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(said) == 2
    assert torch.allclose(model(words).logits, text(words).logits, atol=1e-3)
    model.save_pretrained(tmp_path / "saved")
    assert load_file(tmp_path / "saved" / "model.safetensors").keys() == inner.keys()
    saved = json.loads((tmp_path / "saved/config.json").read_text())
    assert saved["model_type"] == "qwen3_5_moe_text" and "mtp_num_hidden_layers" not in saved
    (tmp_path / "config.json").write_text(json.dumps({**outer, "audio_config": {}}))
    with pytest.raises(ModelError, match="config of qwen3_5_moe: audio_config"):
        refine.models.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", list(RELEASED))
def test_released_sizes_build_without_memory(name):
    parameters, layers = RELEASED[name]
    with torch.device("meta"):
        model = refine.models.from_config({"model_type": name})
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=1e-3)
    assert len(model.model.layers) == layers and all(isinstance(one.mlp, Mixture) for one in model.model.layers)
    assert sum("q_proj" in key for key in model.state_dict()) == layers // 4


@pytest.mark.parametrize(
    ("change", "mixtures"),
    [
        ({}, [True] * 4),
        ({"mlp_only_layers": [0, 3]}, [False, True, True, False]),
        ({"decoder_sparse_step": 2}, [False, True, False, True]),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [1]}, [False, False, False, True]),
        ({"num_experts": 0}, [False] * 4),
    ],
    ids=str,
)
def test_which_layers_of_qwen3_next_are_mixtures(change, mixtures, build, configs):
    model = build({**configs["qwen3_next"], "num_hidden_layers": 4, **change})
    assert [isinstance(block.mlp, Mixture) for block in model.model.layers] == mixtures


def test_padding_is_not_counted(build, configs, tokens):
    model = build(configs["qwen3_5_moe"]).train()
    mask = torch.ones(2, 20, dtype=torch.int64)
    mask[0, :13] = 0
    model(tokens(2, 20), attention_mask=mask)
    counts = take_counts(model)
    assert counts.tokens == 27 and counts.load.sum(1).tolist() == [81, 81]


REFUSED = [
    ("qwen3_5_moe", {"num_experts_per_tok": 8}, r"num_experts_per_tok is 8: expected at most 7 \(num_experts\)"),
    ("qwen3_5_moe", {"num_experts": 0}, "num_experts is 0: expected a whole number above 0"),
    ("qwen3_5_moe", {"moe_intermediate_size": 2.5}, "moe_intermediate_size is 2.5"),
    ("qwen3_5_moe", {"shared_expert_intermediate_size": 0}, "shared_expert_intermediate_size is 0"),
    ("qwen3_5_moe", {"output_router_logits": True}, "output_router_logits is True: a model returns no logits"),
    ("qwen3_5_moe", {"norm_topk_prob": False}, "norm_topk_prob is False: only True is implemented"),
    ("qwen3_5_moe", {"mlp_only_layers": [0]}, r"mlp_only_layers is \[0\]: only \[\] is implemented"),
    ("qwen3_5_moe", {"n_group": 4}, "n_group is 4: unknown to qwen3_5_moe_text"),
    ("qwen3_5_moe", {"router_aux_loss_coef": "0.1"}, "router_aux_loss_coef"),
    ("qwen3_next", {"num_experts": -1}, "num_experts is -1: expected a whole number, 0 for no mixtures"),
    ("qwen3_next", {"decoder_sparse_step": 0}, "decoder_sparse_step is 0"),
    ("qwen3_next", {"mlp_only_layers": [2]}, r"mlp_only_layers is \[2\]: expected a list of layers from 0 to 1"),
    ("qwen3_next", {"mlp_only_layers": "all"}, "mlp_only_layers is 'all'"),
    ("qwen3_next", {"norm_topk_prob": 1}, "norm_topk_prob is 1: expected true or false"),
    ("qwen3_next", {"num_experts": 2**17}, "num_experts is 131072: expected at most 65536"),
    ("qwen3_next", {"routed_scaling_factor": 2.0}, "routed_scaling_factor is 2.0: unknown to qwen3_next"),
]


@pytest.mark.parametrize(("kind", "change", "message"), REFUSED, ids=str)
def test_what_a_config_asks_for_and_is_not_there_is_refused_by_name(kind, change, message, configs):
    with pytest.raises(ModelError, match=message) as caught:
        refine.models.from_config({**configs[kind], "vocab_size": 61, "intermediate_size": 48, **change})
    assert "\n" not in str(caught.value)
