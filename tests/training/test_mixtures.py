"""Mixtures of experts in training: what the routers do is logged, adapters and frozen attention, experts resume."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from refine.errors import SettingError
from refine.models import from_config, from_pretrained
from refine.training.trainer import RefineTrainer

EXPERTS, CHOSEN = 5, 2
CONFIG = {
    "model_type": "qwen3_next",
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "full_attention_interval": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "num_experts": EXPERTS,
    "num_experts_per_tok": CHOSEN,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
    "eos_token_id": None,
}


def new() -> Any:
    torch.manual_seed(0)
    model = from_config(CONFIG)
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.mlp.gate.weight)  # so that experts are chosen unequally
    return model


def first_row(trainer: RefineTrainer) -> dict[str, float]:
    """The metrics of the routers in the first step."""
    row = next(one for one in trainer.state.log_history if "train/loss" in one)
    return {name: value for name, value in row.items() if "router" in name}


def test_what_routers_do_is_logged_once_whatever_runs_twice(
    arguments: Callable[..., Any], rows: list[dict[str, Any]]
) -> None:
    found = []
    for more in ({}, {"gradient_checkpointing": True}, {"per_device_train_batch_size": 1}):
        trainer = RefineTrainer(new(), arguments(max_steps=1, **more), train_dataset=rows)
        trainer.train()
        found.append(first_row(trainer))
    assert found[0].keys() == {"train/router/load/mean", "train/router/load/max", "train/router/entropy"}
    assert 1 <= found[0]["train/router/load/mean"] <= found[0]["train/router/load/max"] <= EXPERTS / CHOSEN
    assert 0 < found[0]["train/router/entropy"] < math.log(EXPERTS)
    assert found[1] == pytest.approx(found[0]) and found[2] == pytest.approx(found[0], rel=1e-5)


def test_a_model_without_mixtures_logs_no_routers(arguments: Callable[..., Any], rows: list[dict[str, Any]]) -> None:
    trainer = RefineTrainer(from_config({**CONFIG, "num_experts": 0}), arguments(max_steps=1), train_dataset=rows)
    trainer.train()
    assert not first_row(trainer)


def test_a_run_resumes_from_experts_that_stand_apart(arguments: Callable[..., Any], rows: list[dict[str, Any]]) -> None:
    every = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trainer = RefineTrainer(new(), arguments(**every), train_dataset=rows)
    trainer.train()
    (trainer.output / "checkpoint-2" / "model.safetensors").unlink()
    again = RefineTrainer(new(), arguments(**every), train_dataset=rows)
    again.train(resume_from_checkpoint=True)
    for one, other in zip(trainer.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("lora", "adapted"),
    [
        ({"target_modules": "all-linear"}, ("in_proj_qkv", "q_proj", "shared_expert_gate", ".experts.", "mlp.gate.")),
        ({"target_modules": ["q_proj", "in_proj_z"]}, ("q_proj", "in_proj_z")),
        ({"target_parameters": ["mlp.experts.down_proj"]}, (".experts.down_proj",)),
    ],
    ids=["all-linear", "mixers", "experts"],
)
def test_adapters_train_merge_and_are_saved_in_the_release_names(
    lora: dict[str, Any],
    adapted: tuple[str, ...],
    arguments: Callable[..., Any],
    rows: list[dict[str, Any]],
    tmp_path: Path,
) -> None:
    model, text = new(), torch.arange(40).view(2, 20)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = LoraConfig(r=2, **{"target_modules": [], **lora})
    args = arguments(max_steps=2, learning_rate=1e-2, gradient_checkpointing=True)
    trainer = RefineTrainer(model, args, train_dataset=rows, peft_config=config)
    trainer.train()
    trainer.model.eval()
    with torch.no_grad():
        expected = trainer.model(text).logits
    merged: Any = trainer.model.merge_and_unload()
    state = merged.state_dict()
    changed = {name for name, tensor in state.items() if not torch.equal(tensor, before[name])}
    assert all(any(part in name for name in changed) for part in adapted)
    assert all(any(part in name for part in adapted) or "all" in str(lora) for name in changed)
    merged.save_pretrained(tmp_path / "merged")
    saved = from_pretrained(tmp_path / "merged")
    assert all(torch.equal(tensor, state[name]) for name, tensor in saved.state_dict().items())
    with torch.no_grad():
        assert torch.allclose(saved(text).logits, expected, atol=1e-5)


def test_adapters_of_experts_as_a_whole_are_refused(arguments: Callable[..., Any], rows: list[dict[str, Any]]) -> None:
    with pytest.raises(SettingError, match="Target module Experts") as caught:
        lora = LoraConfig(target_modules=["experts"])
        RefineTrainer(new(), arguments(max_steps=1), train_dataset=rows, peft_config=lora)
    assert "\n" not in str(caught.value)


def test_routers_and_experts_train_while_attention_is_frozen(
    arguments: Callable[..., Any], rows: list[dict[str, Any]]
) -> None:
    model = new()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    args = arguments(max_steps=1, learning_rate=1e-2, freeze="attention")
    RefineTrainer(model, args, train_dataset=rows).train()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (".self_attn." in name), name
