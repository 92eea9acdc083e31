"""A hybrid trains, resumes under the names that it has on disk, takes adapters, and adapts at test time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from refine.errors import SettingError
from refine.models import from_config, from_pretrained
from refine.settings.training import TestTimeSettings
from refine.training.test_time import TestTimeTrainer
from refine.training.trainer import RefineTrainer

CONFIG = {
    "model_type": "qwen3_5_text",
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "eos_token_id": None,
}
EVERY_STEP = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1}


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A tiny Qwen3.5 with the names of a multimodal release."""
    torch.manual_seed(0)
    folder = tmp_path / "released"
    from_config(CONFIG).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in weights.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_checkpoints_have_the_names_of_the_release_and_a_run_resumes_from_them(
    released: Path, arguments: Callable[..., Any], rows: list[dict[str, Any]]
) -> None:
    trainer = RefineTrainer(from_pretrained(released), arguments(**EVERY_STEP), train_dataset=rows)
    trainer.train()
    last = trainer.output / "checkpoint-3" / "model.safetensors"
    assert load_file(last).keys() == load_file(released / "model.safetensors").keys()
    last.unlink()
    again = RefineTrainer(from_pretrained(released), arguments(**EVERY_STEP), train_dataset=rows)
    again.train(resume_from_checkpoint=True)
    for one, other in zip(trainer.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_adapters_of_the_blocks_train_and_of_the_embedding_are_refused(
    released: Path, arguments: Callable[..., Any], rows: list[dict[str, Any]]
) -> None:
    lora = LoraConfig(r=2, target_modules=["in_proj_qkv", "out_proj"])
    trainer = RefineTrainer(from_pretrained(released), arguments(max_steps=1), train_dataset=rows, peft_config=lora)
    trainer.train()
    merged = trainer.model.merge_and_unload()
    merged.save_pretrained(trainer.output / "merged")
    saved = load_file(trainer.output / "merged/model.safetensors")
    before = load_file(released / "model.safetensors")
    changed = {name for name in before if not torch.equal(saved[name], before[name])}
    assert changed and all("in_proj_qkv" in name or "out_proj" in name for name in changed)
    with pytest.raises(SettingError, match="embed_tokens, where an adapter has no effect"):
        bad = LoraConfig(r=2, target_modules=["embed_tokens"])
        RefineTrainer(from_pretrained(released), arguments(), train_dataset=rows, peft_config=bad)


def test_test_time_training_restores_a_hybrid_bit_for_bit(released: Path, rows: list[dict[str, Any]]) -> None:
    model = from_pretrained(released)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    settings = TestTimeSettings(steps=1, learning_rate=1e-2)
    with TestTimeTrainer(settings)(model, torch.tensor([rows[0]["tokens"]])):
        assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
