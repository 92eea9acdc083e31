"""Models are built and loaded strictly; what does not fit is refused in one line that names it.

These are also the tests of configuration.py and weights.py, and of the configs in delta/.
"""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import refine.models
from refine.errors import ModelError

SMALL = {"vocab_size": 61, "intermediate_size": 48}


@pytest.fixture(params=["delta_net", "gated_deltanet", "kda", "gated_deltaproduct", "comba", "lact"])
def name(request):
    """The models that transformers does not have; the others are in hybrids/test_loading.py."""
    return request.param


def _same(a, b):
    one, other = a.state_dict(), b.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture
def saved(name, configs, build, tmp_path):
    """A saved model of each kind: (model, folder)."""
    model = build(configs[name], torch.float32)
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


def test_a_saved_model_loads_with_the_same_weights_and_logits(saved, tokens):
    model, folder = saved
    loaded = refine.models.from_pretrained(folder)
    _same(loaded, model)
    assert torch.equal(loaded(tokens(1, 9)).logits, model(tokens(1, 9)).logits)


def test_the_auto_classes_give_our_models(saved):
    model, folder = saved
    assert type(AutoConfig.from_pretrained(folder)) is type(model.config)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert type(loaded) is type(model)
    _same(loaded, model)
    assert type(AutoModelForCausalLM.from_config(model.config)) is type(model)


def test_a_config_is_read_from_a_dict_a_file_or_a_folder(saved):
    model, folder = saved
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    for config in (json.loads((folder / "config.json").read_text()), folder / "config.json", str(folder), model.config):
        built = refine.models.from_config(config)
        assert {key: value.shape for key, value in built.state_dict().items()} == shapes


def test_sharded_weights_load_and_a_lost_shard_is_named(saved):
    model, folder = saved
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="10KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    _same(refine.models.from_pretrained(folder), model)
    shards[1].unlink()
    with pytest.raises(ModelError, match=shards[1].name):
        refine.models.from_pretrained(folder)


def test_bfloat16_weights_stay_bfloat16_unless_another_dtype_is_asked_for(saved):
    model, folder = saved
    model.to(torch.bfloat16).save_pretrained(folder)
    assert refine.models.from_pretrained(folder).dtype == torch.bfloat16
    assert refine.models.from_pretrained(folder, dtype=torch.float32).dtype == torch.float32


def _altered(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


DAMAGE = {
    "a missing tensor": (lambda t: t.pop("model.norm.weight"), r"lack model\.norm\.weight"),
    "an extra tensor": (lambda t: t.update({"model.layers.7.odd": torch.ones(1)}), r"hold model\.layers\.7\.odd"),
    "a NaN": (lambda t: t["model.norm.weight"].__setitem__(3, torch.nan), r"model\.norm\.weight holds 1 value"),
    "integers": (
        lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int32)}),
        r"model\.norm\.weight is stored as I32; expected weights as one of F64, F32, F16, BF16",
    ),
    "another vocabulary": (
        lambda t: t.update({"model.embeddings.weight": torch.ones(60, 32)}),
        r"embeddings\.weight has shape \[60, 32\].*\[61, 32\].*vocabulary",
    ),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
@pytest.mark.parametrize("door", ["refine", "auto"])
def test_damaged_weights_are_refused_by_tensor_name(saved, damage, door):
    _, folder = saved
    change, message = DAMAGE[damage]
    _altered(folder, change)
    load = refine.models.from_pretrained if door == "refine" else AutoModelForCausalLM.from_pretrained
    with pytest.raises(ModelError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_a_file_that_was_cut_off_is_refused(saved):
    _, folder = saved
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors: damaged"):
        refine.models.from_pretrained(folder)


def test_pickled_weights_are_never_read(saved):
    model, folder = saved
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin, but only safetensors"):
        refine.models.from_pretrained(folder)


def test_tied_embeddings_are_one_matrix_and_a_deviating_head_is_refused(name, configs, build, tmp_path):
    model = build({**configs[name], "tie_word_embeddings": True}, torch.float32)
    assert model.lm_head.weight is model.model.embeddings.weight
    model.save_pretrained(tmp_path)
    loaded = refine.models.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embeddings.weight
    _altered(tmp_path, lambda t: t.update({"lm_head.weight": torch.ones(61, 32)}))
    with pytest.raises(ModelError, match=r"tie_word_embeddings is true, but lm_head\.weight differs"):
        refine.models.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("nobody/nothing", "the hub cannot be reached"),
        ("no such/place/at all", "no such model folder"),
        ("./gone", "no such model folder"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(where, message):
    with pytest.raises(ModelError, match=message) as caught:
        refine.models.from_pretrained(where)
    assert where in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_without_a_config_or_with_a_broken_one_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json: no such config file"):
        refine.models.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: not valid JSON"):
        refine.models.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "delta_nett"}')
    with pytest.raises(ModelError, match="did you mean 'delta_net'"):
        refine.models.from_pretrained(tmp_path)


REFUSED = [
    ("delta_net", "attnres_block_size", 4),
    ("delta_net", "use_l2warp", True),
    ("delta_net", "hidden_act", "gelu"),
    ("delta_net", "qk_norm", "none"),
    ("delta_net", "qk_activation", "tanh"),
    ("delta_net", "use_output_norm", False),
    ("delta_net", "norm_first", True),
    ("delta_net", "conv_bias", True),
    ("delta_net", "num_heads", 3),
    ("delta_net", "num_hidden_layers", 0),
    ("delta_net", "vocab_size", -5),
    ("delta_net", "sliding_window_size", 128),
    ("gated_deltanet", "num_v_heads", 5),
    ("gated_deltanet", "expand_v", 0.3),
    ("gated_deltanet", "output_gate_activation", "gelu"),
    ("gated_deltanet", "attn", {"layers": [1], "num_heads": 3}),
]


@pytest.mark.parametrize(("kind", "field", "value"), REFUSED, ids=lambda x: str(x) if isinstance(x, str) else "")
def test_what_a_config_asks_for_and_is_not_there_is_refused_by_name(kind, field, value, configs):
    with pytest.raises(ModelError) as caught:
        refine.models.from_config({**SMALL, **configs[kind], field: value})
    assert field in str(caught.value) or (field == "num_heads" and "num_heads" in str(caught.value))
    assert "\n" not in str(caught.value)


def test_fields_of_older_releases_that_change_nothing_are_accepted(configs):
    harmless = {"norm_first": False, "share_conv_kernel": False, "elementwise_affine": True, "torch_dtype": "bfloat16"}
    assert refine.models.from_config({**SMALL, **configs["delta_net"], **harmless})


def test_the_published_sizes_build_without_memory():
    with torch.device("meta"):
        model = refine.models.from_config({"model_type": "delta_net"})
    assert sum(p.numel() for p in model.parameters()) == 1_365_677_056


@pytest.mark.requires_fla
@pytest.mark.parametrize("first", ["refine.models", "fla.models"])
def test_our_classes_keep_their_names_whenever_fla_is_imported(first):
    second = "fla.models" if first == "refine.models" else "refine.models"
    check = f"""
import {first}, {second}
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
for kind in ("delta_net", "gated_deltanet", "kda", "gated_deltaproduct", "comba"):
    config = AutoConfig.for_model(kind, num_hidden_layers=1, hidden_size=64, num_heads=2, vocab_size=50)
    assert type(config).__module__.startswith("refine."), type(config)
    model = AutoModelForCausalLM.from_config(config)
    assert type(model).__module__.startswith("refine."), type(model)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", check], check=True, timeout=120)


PLAIN = {"hidden_size": 64, "num_heads": 2, "num_hidden_layers": 1, "vocab_size": 61}
FLA = [
    ("DeltaNet", {**PLAIN, "num_hidden_layers": 2}),
    ("DeltaNet", {**PLAIN, "use_gate": True, "use_beta": False, "expand_v": 2.0}),
    ("DeltaNet", {**PLAIN, "use_short_conv": False, "tie_word_embeddings": True}),
    ("GatedDeltaNet", {**PLAIN, "num_hidden_layers": 2, "head_dim": 16}),
    ("GatedDeltaNet", {**PLAIN, "num_v_heads": 4, "head_dim": 16, "use_gate": False}),
    ("KDA", {**PLAIN, "num_hidden_layers": 2, "head_dim": 16}),
    ("KDA", {**PLAIN, "num_v_heads": 4, "head_dim": 16, "expand_v": 2.0, "lower_bound": -5.0, "safe_gate": True}),
    ("GatedDeltaProduct", {**PLAIN, "head_dim": 16, "num_householder": 3, "use_forget_gate": True}),
    ("GatedDeltaProduct", {**PLAIN, "head_dim": 16, "use_output_gate": False, "use_short_conv": False}),
    ("Comba", {**PLAIN, "head_dim": 16, "num_v_heads": 4, "correction_factor": 0.02}),
    ("Comba", {**PLAIN, "head_dim": 16, "use_output_gate": False, "use_short_conv": False}),
]


@pytest.mark.requires_fla
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("family", "fields"), FLA)
def test_folders_go_to_flash_linear_attention_and_back(family, fields, tmp_path):
    import fla.models

    config = getattr(fla.models, f"{family}Config")(**fields)
    theirs = getattr(fla.models, f"{family}ForCausalLM")(config)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = refine.models.from_pretrained(tmp_path / "theirs")
    _same(ours, theirs)
    for key, value in config.to_dict().items():
        if key not in ("architectures", "transformers_version", "_name_or_path"):
            assert ours.config.to_dict()[key] == value, key
    ours.save_pretrained(tmp_path / "ours")
    back, report = getattr(fla.models, f"{family}ForCausalLM").from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    _same(back, theirs)


@pytest.mark.requires_fla
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("family", ["DeltaNet", "GatedDeltaNet", "KDA", "GatedDeltaProduct", "Comba"])
def test_defaults_are_those_of_flash_linear_attention(family):
    import fla.models

    theirs = getattr(fla.models, f"{family}Config")()
    small = {"model_type": theirs.model_type, "hidden_size": 64, "num_heads": 2, "vocab_size": 8}
    ours = refine.models.from_config(small | ({} if family == "DeltaNet" else {"head_dim": 16})).config
    for key, value in theirs.to_dict().items():
        if key not in ("hidden_size", "num_heads", "vocab_size", "head_dim", "transformers_version"):
            assert ours.to_dict()[key] == value, key


def test_shards_saved_over_a_single_file_are_what_loads_and_the_other_way_round(saved):
    model, folder = saved
    for size in ("20KB", "1GB", "20KB"):
        with torch.no_grad():
            model.model.norm.weight.add_(1)
        model.save_pretrained(folder, max_shard_size=size)
        _same(refine.models.from_pretrained(folder), model)
    (folder / "model.safetensors").write_bytes(b"an older model")
    with pytest.raises(ModelError, match=r"holds both model\.safetensors and model\.safetensors\.index\.json"):
        refine.models.from_pretrained(folder)


@pytest.mark.parametrize("shard", ["/etc/passwd", "../other.safetensors", "sub/../../x", 3])
def test_a_shard_index_names_files_of_its_own_folder_alone(saved, shard):
    _, folder = saved
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": shard}}))
    with pytest.raises(ModelError, match=r"expected the name of a \.safetensors file in the same folder"):
        refine.models.from_pretrained(folder)


def test_a_model_reads_in_float32_on_a_cpu(name, configs, build, tmp_path):
    build(configs[name], torch.bfloat16).save_pretrained(tmp_path)
    read, kept = refine.models.load_for_reading(tmp_path, "cpu"), refine.models.from_pretrained(tmp_path)
    assert read.dtype == torch.float32 and not read.training and kept.dtype == torch.bfloat16
    weights = read.state_dict()
    assert all(torch.equal(weights[key], value.float()) for key, value in kept.state_dict().items())
