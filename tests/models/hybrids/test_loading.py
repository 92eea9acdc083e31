"""Hybrids load from released names and are saved under them, with the dtypes of the source; what does not fit is named.

These are also the tests of model.py, tensor_names.py and configuration.py.
"""

import json
import logging
import re
import shutil

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import refine.models
from refine import paths
from refine.errors import ModelError

CLASSES = {
    "qwen3_5": "Qwen3_5ForCausalLM",
    "qwen3_5_moe": "Qwen3_5MoeForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM",
    "olmo_hybrid": "OlmoHybridForCausalLM",
    "kimi_linear": "KimiLinearForCausalLM",
}


def stored(folder):
    """Names, shapes and dtypes of all tensors in `folder`."""
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                found[name] = (tuple(file.get_tensor(name).shape), file.get_tensor(name).dtype)
    return found


def rewrite(folder, change):
    """The weights of `folder` (one file), changed."""
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(
        {name: x.contiguous().clone() for name, x in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )


def released(family, folder, theirs, **fields):
    """A folder as it is released: mixed dtypes; OLMo's own names of norms, and convolutions cut where they end."""
    theirs(family, **fields).bfloat16().save_pretrained(folder)

    def change(tensors):
        if family == "olmo_hybrid":
            attending = {name.split(".")[2] for name in tensors if ".self_attn." in name}
            renamed = {}
            for name, x in tensors.items():
                name = name.replace(".attention_layer_norm.", ".input_layernorm.")
                if ".feedforward_layer_norm." in name:
                    assert name.split(".")[2] not in attending or ".post_feedforward" not in name
                    name = name.replace(".feedforward_layer_norm.", ".post_attention_layernorm.")
                renamed[name] = x
            tensors = renamed
            for first in [name for name in tensors if ".q_conv1d." in name]:
                names = [first.replace(".q_", f".{one}_") for one in "qkv"]
                widths = [len(tensors[name.replace("_conv1d", "_proj")]) for name in names]
                joined = torch.cat([tensors[name] for name in names])
                tensors.update(zip(names, joined.split(widths), strict=True))
        if family == "kimi_linear":  # transformers saves the dense layer as if it were a mixture
            sparse = r"\.block_sparse_moe\.(gate_proj|up_proj|down_proj)\."
            tensors = {re.sub(sparse, r".mlp.\1.", name): x for name, x in tensors.items()}
        wide = ("A_log", "linear_attn.norm.weight", "o_norm.weight", "e_score_correction_bias")
        return {name: x.float() if name.endswith(wide) else x for name, x in tensors.items()}

    rewrite(folder, change)
    return folder


@torch.no_grad()
def test_names_and_dtypes_go_from_disk_to_disk_and_transformers_reads_them_to_equal_logits(
    family, theirs, tokens, tmp_path
):
    source = released(family, tmp_path / "source", theirs)
    model, text = refine.models.from_pretrained(source), tokens(2, 60)
    model.save_pretrained(tmp_path / "saved")
    assert stored(tmp_path / "saved") == stored(source)
    assert {dtype for _, dtype in stored(source).values()} == {torch.bfloat16, torch.float32}
    kind = getattr(transformers, CLASSES[family])
    again, report = kind.from_pretrained(tmp_path / "saved", dtype=torch.float32, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = refine.models.from_pretrained(tmp_path / "saved", dtype=torch.float32)(text).logits
    assert float((again(text).logits - expected).norm() / expected.norm()) < 2e-5
    assert json.loads((tmp_path / "saved/config.json").read_text())["architectures"] == [CLASSES[family]]


@torch.no_grad()
def test_the_shipped_hybrid_gives_equal_logits_in_transformers(theirs):
    """`theirs` lets transformers run on a CPU where fla is installed."""
    text = torch.arange(200).view(2, 100) % 90 + 7
    ours = refine.models.from_pretrained("sample/hybrid", dtype=torch.float32)(text).logits
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        paths.SHIPPED / "hybrid", dtype=torch.float32, output_loading_info=True
    )
    assert type(model).__module__.startswith("transformers.") and not any(
        report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
    )
    assert float((model(text).logits - ours).norm() / ours.norm()) < 1e-4


def test_weights_stay_as_much_wider_as_they_are_stored(family, theirs, tmp_path):
    source = released(family, tmp_path, theirs)
    for dtype in (torch.bfloat16, torch.float16):
        model = refine.models.from_pretrained(source, dtype=dtype)
        assert model.dtype == dtype
        assert {p.dtype for name, p in model.named_parameters() if name.endswith("A_log")} == {torch.float32}
    assert {p.dtype for p in refine.models.from_pretrained(source, dtype="float32").parameters()} == {torch.float32}
    with pytest.raises(ModelError, match="dtype is 'bf16': expected auto or one of torch"):
        refine.models.from_pretrained(source, dtype="bf16")


def test_shards_load_and_shards_are_saved(family, theirs, tmp_path):
    model = theirs(family)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    one, many = (refine.models.from_pretrained(tmp_path / name) for name in ("one", "many"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), many.parameters(), strict=True))
    many.save_pretrained(tmp_path / "again", max_shard_size="20KB")
    index = json.loads((tmp_path / "again/model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == stored(tmp_path / "one").keys() and len(set(index.values())) > 2


def test_a_tied_head_is_one_matrix(theirs, tmp_path):
    theirs("qwen3_5", tie_word_embeddings=True).save_pretrained(tmp_path)
    model = refine.models.from_pretrained(tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path / "again")
    assert stored(tmp_path / "again") == stored(tmp_path) and "lm_head.weight" not in stored(tmp_path)


@pytest.fixture
def multimodal(theirs, tmp_path):
    """A folder of a multimodal Qwen3.5, with a vision model and multi-token prediction, and its text model."""
    text = theirs("qwen3_5")
    text.save_pretrained(tmp_path / "text")
    shutil.copytree(tmp_path / "text", tmp_path / "multimodal")
    config = json.loads((tmp_path / "text/config.json").read_text())
    outer = {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "image_token_id": 50,
        "vision_config": {"depth": 1, "hidden_size": 8},
        "tie_word_embeddings": False,
        "text_config": {**config, "mtp_num_hidden_layers": 1, "full_attention_interval": 4, "attn_output_gate": True},
    }
    (tmp_path / "multimodal/config.json").write_text(json.dumps(outer))

    def change(tensors):
        inner = {name.replace("model.", "model.language_model.", 1): x for name, x in tensors.items()}
        return {**inner, "model.visual.patch.weight": torch.ones(3), "mtp.fc.weight": torch.ones(2, dtype=torch.int64)}

    rewrite(tmp_path / "multimodal", change)
    return tmp_path / "multimodal", text


@torch.no_grad()
def test_the_text_part_of_a_multimodal_model_is_read_and_saved_and_what_is_left_out_is_said(
    multimodal, tokens, tmp_path, caplog
):
    folder, text = multimodal
    with caplog.at_level(logging.WARNING):
        model = refine.models.from_pretrained(folder)
    said = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(said) == 2 and "model.visual" in " ".join(said) and "mtp" in " ".join(said)
    words = tokens(1, 30)
    assert torch.allclose(model(words).logits, text(words).logits, atol=1e-3)
    model.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved/config.json").read_text())
    assert config["model_type"] == "qwen3_5_text" and not config.get("mtp_num_hidden_layers")
    kept = {name: x for name, x in stored(folder).items() if not name.startswith(("model.visual", "mtp"))}
    assert stored(tmp_path / "saved") == kept
    back, report = transformers.Qwen3_5ForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(back(words).logits, text(words).logits)


def test_a_state_in_any_published_names_can_be_put_into_a_model(multimodal):
    folder, text = multimodal
    model = refine.models.from_config(folder)
    model.load_state_dict(load_file(folder / "model.safetensors"))  # as Trainer does when it resumes
    assert torch.equal(model.model.norm.weight, text.model.norm.weight)


REFUSED = [
    ("qwen3_5", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, r"rope_parameters\.rope_type is 'yarn'"),
    ("qwen3_5", {"rope_scaling": {"type": "linear", "factor": 2.0}}, r"rope_parameters\.type is 'linear'"),
    ("qwen3_5", {"rope_parameters": {"long_factor": [1.0]}}, r"rope_parameters\.long_factor"),
    ("qwen3_5", {"partial_rotary_factor": 0.2}, "partial_rotary_factor is 0.2"),
    ("qwen3_5", {"output_gate_type": "sigmoid"}, "output_gate_type is 'sigmoid': only 'swish'"),
    ("qwen3_5", {"attn_output_gate": False}, "attn_output_gate"),
    ("qwen3_5", {"num_experts": 8}, "num_experts is 8: unknown to qwen3_5_text"),
    ("qwen3_5", {"attention_dropout": 0.1}, "attention_dropout"),
    ("qwen3_5", {"hidden_act": "gelu"}, "hidden_act"),
    ("qwen3_5", {"layer_types": ["linear_attention"]}, r"layer_types .*expected 2 \(num_hidden_layers\)"),
    ("qwen3_5", {"layer_types": ["linear_attention", "sliding_attention"]}, "layer_types"),
    ("qwen3_5", {"num_key_value_heads": 3}, "num_key_value_heads is 3: expected a divisor of 4"),
    ("qwen3_5", {"linear_num_value_heads": 3}, "linear_num_value_heads is 3: expected a multiple of 2"),
    ("qwen3_5", {"head_dim": 0}, "head_dim is 0"),
    ("qwen3_5", {"num_attention_heads": "4"}, "num_attention_heads"),
    ("qwen3_5", {"full_attention_interval": 0}, "full_attention_interval is 0"),
    ("qwen3_5", {"rms_norm_eps": -1}, "rms_norm_eps"),
    ("olmo_hybrid", {"rope_parameters": {"rope_theta": -1.0}}, r"rope_parameters\.rope_theta is -1\.0"),
    ("olmo_hybrid", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "turn whole heads"),
    ("olmo_hybrid", {"rope_parameters": "none"}, "rope_parameters is 'none'"),
    ("olmo_hybrid", {"linear_allow_neg_eigval": 2}, "linear_allow_neg_eigval"),
    ("olmo_hybrid", {"sliding_window": 9}, "sliding_window is 9: unknown to olmo_hybrid"),
]


@pytest.mark.parametrize(("kind", "change", "message"), REFUSED, ids=str)
def test_what_a_config_asks_for_and_is_not_there_is_refused_by_name(kind, change, message, configs):
    with pytest.raises(ModelError, match=message) as caught:
        refine.models.from_config({**configs[kind], "vocab_size": 61, "intermediate_size": 48, **change})
    assert "\n" not in str(caught.value)


def test_families_that_are_not_there_are_named_with_those_that_are():
    with pytest.raises(ModelError, match=r"kimi_k9.*expected one of delta_net.*qwen3_5_text, qwen3_5, .*olmo_hybrid"):
        refine.models.from_config({"model_type": "kimi_k9"})


def test_unknown_fields_beside_the_text_config_are_named(multimodal):
    folder, _ = multimodal
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "audio_config": {}}))
    with pytest.raises(ModelError, match="config of qwen3_5: audio_config"):
        refine.models.from_pretrained(folder)


DAMAGE = {
    "a missing tensor": (
        lambda t: {k: x for k, x in t.items() if k != "model.norm.weight"},
        r"lack model\.norm\.weight",
    ),
    "an extra tensor": (lambda t: {**t, "model.layers.0.odd": torch.ones(1)}, r"hold model\.layers\.0\.odd"),
    "another vocabulary": (
        lambda t: {**t, "model.embed_tokens.weight": torch.ones(60, t["model.norm.weight"].shape[0])},
        r"embed_tokens\.weight has shape \[60, .*vocabulary",
    ),
    "a NaN": (lambda t: {**t, "model.norm.weight": t["model.norm.weight"] * torch.nan}, r"model\.norm\.weight holds"),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_damaged_weights_are_refused_by_tensor_name(family, theirs, damage, tmp_path):
    theirs(family).save_pretrained(tmp_path)
    change, message = DAMAGE[damage]
    rewrite(tmp_path, change)
    with pytest.raises(ModelError, match=message) as caught:
        refine.models.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_one_tensor_under_two_names_is_refused(theirs, tmp_path):
    theirs("qwen3_5").save_pretrained(tmp_path)
    rewrite(tmp_path, lambda t: {**t, "model.language_model.norm.weight": t["model.norm.weight"]})
    with pytest.raises(ModelError, match=r"both model\..*norm\.weight and model\..*norm\.weight"):
        refine.models.from_pretrained(tmp_path)


def test_transformers_keeps_its_own_classes(family):
    kind = {"qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text"}.get(family, family)
    assert type(transformers.AutoConfig.for_model(kind)).__module__.startswith("transformers.")
