"""With `freeze: attention` a hybrid's attention keeps its bits and all else trains; what cannot be is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from refine import settings
from refine.errors import SettingError
from refine.models import from_config
from refine.phases import mid
from refine.phases.prepared_data import Prepared
from refine.settings.training import TestTimeSettings
from refine.training.arguments import RefineArguments, _has
from refine.training.freezing import ATTENTION, check_config
from refine.training.test_time import TestTimeTrainer
from refine.training.trainer import RefineTrainer

QWEN = {
    "model_type": "qwen3_5_text", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "full_attention_interval": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 4, "linear_value_head_dim": 4,
}  # fmt: skip
OLMO = {
    "model_type": "olmo_hybrid", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"], "num_attention_heads": 2, "linear_num_key_heads": 2,
    "linear_num_value_heads": 2, "linear_key_head_dim": 4, "rope_parameters": {"rope_theta": None},
}  # fmt: skip
KIMI = {
    "model_type": "kimi_linear", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "linear_attn_config": {"kda_layers": [1], "full_attn_layers": [2], "num_heads": 2, "head_dim": 4},
    "num_attention_heads": 2, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 4,
    "num_experts": 4, "num_experts_per_token": 2, "moe_intermediate_size": 8,
}  # fmt: skip
PLAIN = {"model_type": "delta_net", "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_heads": 2}
WINDOWS = {**PLAIN, "attn": [{"layers": [0], "num_heads": 2, "window_size": 8}]}
HYBRIDS = {"qwen3_5": QWEN, "olmo_hybrid": OLMO, "kimi_linear": KIMI, "delta_net with a window": WINDOWS}
NEVER = "e_score_correction_bias"
ONE_EVERY = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3, "save_total_limit": 3}
RECOMPUTE = "activation_checkpointing" if _has("activation_checkpointing") else "gradient_checkpointing"


def new(config: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return from_config(config)


def in_attention(model: Any) -> dict[str, bool]:
    """Which parameters an attention mixer has, or never train."""
    inside = {id(p) for module in model.modules() if isinstance(module, ATTENTION) for p in module.parameters()}
    return {name: id(p) in inside or name.endswith(NEVER) for name, p in model.named_parameters()}


def moved(model: Any, before: dict[str, torch.Tensor]) -> dict[str, bool]:
    return {name: not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters()}


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("kind", HYBRIDS)
def test_attention_keeps_its_bits_and_all_else_trains_also_with_checkpointing(
    kind: str, arguments: Callable[..., Any], rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    found = []
    for recompute in (False, True):
        model = new(HYBRIDS[kind]).double()
        before, inside = state(model), in_attention(model)
        args = arguments(
            max_steps=2, freeze="attention", output_dir=str(tmp_path / str(recompute)), **{RECOMPUTE: recompute}
        )
        RefineTrainer(model, args, train_dataset=rows).train()
        assert any(inside.values()) and moved(model, before) == {name: not here for name, here in inside.items()}
        found.append(state(model))
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-9) for name in found[0])


@pytest.mark.parametrize("adapters", [False, True], ids=["weights", "adapters"])
def test_a_run_resumes_to_the_same_bits_and_attention_stays(
    adapters: bool, arguments: Callable[..., Any], rows: list[dict[str, Any]]
) -> None:
    def trainer() -> RefineTrainer:
        lora = LoraConfig(r=2, target_modules="all-linear") if adapters else None
        return RefineTrainer(
            new(QWEN), arguments(freeze="attention", **ONE_EVERY), train_dataset=rows, peft_config=lora
        )

    whole = trainer()
    before, inside = state(whole.model), in_attention(whole.model)
    whole.train()
    changed = moved(whole.model, before)
    assert not any(changed[name] for name, here in inside.items() if here)
    trained = {name for name, moves in changed.items() if moves}
    assert trained and (not adapters or all("lora_" in name for name in trained))
    for step in (2, 3):
        shutil.rmtree(whole.output / f"checkpoint-{step}")
    again = trainer()
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3
    assert not any(moved(again.model, state(whole.model)).values())


@pytest.mark.parametrize("adapters", [False, True], ids=["weights", "adapters"])
def test_at_test_time_attention_stays_and_its_gradients_come_back(
    adapters: bool, arguments: Callable[..., Any], rows: list[dict[str, Any]]
) -> None:
    model = new(QWEN)
    if adapters:
        lora = LoraConfig(r=2, target_modules=["q_proj", "o_proj", "out_proj"], init_lora_weights=False)
        model = RefineTrainer(model, arguments(), train_dataset=rows, peft_config=lora).model
    before, inside = state(model), in_attention(model)
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    values = {"steps": 1, "learning_rate": 1e-2, "freeze": "attention", "objective": {"positions": 3, "min_prefix": 4}}
    adapter = TestTimeTrainer(TestTimeSettings.model_validate(values))
    with adapter(model, torch.tensor([rows[0]["tokens"]])):
        changed = moved(model, before)
        assert changed == {name: wanted[name] and not here for name, here in inside.items()}
        assert all(p.grad is None for name, p in model.named_parameters() if inside[name])
    assert not any(moved(model, before).values())
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == wanted
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_cannot_be_frozen_is_refused_in_one_line(
    arguments: Callable[..., Any], rows: list[dict[str, Any]]
) -> None:
    everywhere = {**PLAIN, "attn": [{"layers": [0, 1], "num_heads": 2}]}
    faults = [
        (
            lambda: new(PLAIN),
            None,
            r"freeze is 'attention', and this delta_net has no layers of attention",
        ),
        (lambda: new(everywhere), None, "all 2 layers of this delta_net attend"),
        (lambda: new(QWEN), LoraConfig(target_modules=["q_proj"]), "nothing else would train: let the adapters'"),
    ]
    for build, lora, said in faults:
        with pytest.raises(SettingError, match=said) as caught:
            RefineTrainer(build(), arguments(freeze="attention"), train_dataset=rows, peft_config=lora)
        assert "\n" not in str(caught.value)
    with pytest.raises(SettingError, match=r"RefineArguments\.freeze is 'all': expected 'none' or 'attention'"):
        RefineArguments(output_dir="x", freeze="all")
    with pytest.raises(SettingError, match=r"training\.mid\.freeze is 'attention'"):
        check_config(PLAIN, "attention", "training.mid.freeze")
    check_config(QWEN, "attention", "training.mid.freeze")
    check_config(PLAIN, "none", "training.mid.freeze")


def test_a_phase_freezes_and_refuses_before_it_writes(
    params: Path, prepared_folder: Path, start_model: Path, tmp_path: Path
) -> None:
    hybrid, data = tmp_path / "hybrid", Prepared(prepared_folder)
    new(QWEN).save_pretrained(hybrid)
    for path in (prepared_folder / "tokenizer").iterdir():
        shutil.copy(path, hybrid)
    values = settings.load(params, ("training.mid.freeze=attention", "training.mid.steps=1"))
    with pytest.raises(SettingError, match=r"training\.mid\.freeze is 'attention'"):
        mid.plan(values, "sft", str(start_model), data).run(tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    mid.plan(values, "sft", str(hybrid), data).run(tmp_path / "run")
    before = state(new(QWEN))
    from refine.models import from_pretrained

    trained = from_pretrained(tmp_path / "run" / "model")
    assert moved(trained, before) == {name: not here for name, here in in_attention(trained).items()}
