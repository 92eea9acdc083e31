"""Adapters of peft: they train, resume, merge and adapt at test time; the weights beside them stay as they are."""

from __future__ import annotations

import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig

from refine.errors import ModelError, SettingError, TrainingError
from refine.models import from_pretrained
from refine.settings.training import TestTimeSettings
from refine.training import checkpoints
from refine.training.adapters import ADAPTER
from refine.training.test_time import TestTimeTrainer
from refine.training.trainer import RefineTrainer

OBJECTIVE = {"positions": 3, "rollout_length": 3, "min_prefix": 4}


def lora(**more) -> LoraConfig:
    return LoraConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj", "o_proj", "down_proj"], **more})


def base_weights(model) -> list[torch.Tensor]:
    return [tensor.detach().clone() for name, tensor in model.named_parameters() if "lora_" not in name]


def train(model, args, rows, **more) -> RefineTrainer:
    trainer = RefineTrainer(model, args, train_dataset=rows, **more)
    trainer.train(resume_from_checkpoint=True)
    return trainer


def test_only_the_adapter_is_trained_and_saved(tiny_model, arguments, rows):
    start = base_weights(tiny_model())
    args = arguments(max_steps=12, learning_rate=3e-2, save_strategy="steps", save_steps=6)
    trainer = train(tiny_model(), args, rows, peft_config=lora(r=8, lora_alpha=32, target_modules="all-linear"))
    before = RefineTrainer(tiny_model(), args, eval_dataset=rows).evaluate()["eval_loss"]
    assert trainer.evaluate(rows)["eval_loss"] < before - 0.02
    assert all(torch.equal(one, other) for one, other in zip(base_weights(trainer.model), start, strict=True))
    folder = trainer.output / "checkpoint-12"
    assert checkpoints.is_complete(folder) and (folder / ADAPTER).is_file()
    assert not (folder / "model.safetensors").exists()


def test_a_run_with_adapters_resumes_to_the_same_bits(tiny_model, arguments, rows, tmp_path):
    every = {"max_steps": 4, "learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 2}
    whole = train(tiny_model(), arguments(**every), rows, peft_config=lora())
    half = arguments(**{**every, "max_steps": 2, "output_dir": str(tmp_path / "cut")})
    train(tiny_model(), half, rows, peft_config=lora())
    rest = arguments(**{**every, "output_dir": str(tmp_path / "cut")})
    resumed = train(tiny_model(), rest, rows, peft_config=lora())
    assert resumed.state.global_step == 4
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_merged_weights_are_a_model_of_this_package_with_the_same_logits(tiny_model, arguments, rows, tmp_path):
    args = arguments(learning_rate=3e-2, save_strategy="steps", save_steps=6)
    trainer = train(tiny_model(), args, rows, peft_config=lora())
    tokens = torch.tensor([rows[0]["tokens"]])
    with torch.no_grad():
        adapted = trainer.model.eval()(tokens).logits
        loaded = PeftModel.from_pretrained(tiny_model(), trainer.output / "checkpoint-6").eval()
        assert torch.equal(loaded(tokens).logits, adapted)
        trainer.model.merge_and_unload().save_pretrained(tmp_path / "merged")
        merged = from_pretrained(tmp_path / "merged")(tokens).logits
    assert torch.allclose(adapted, merged, atol=1e-5)
    assert not torch.allclose(merged, tiny_model()(tokens).logits, atol=1e-3)


def test_at_test_time_only_the_adapter_is_kept_and_restored(tiny_model, arguments, rows):
    trainer = train(tiny_model(), arguments(max_steps=2, learning_rate=1e-2), rows, peft_config=lora())
    model, prompt = trainer.model, torch.tensor([rows[0]["tokens"]])
    before = [tensor.detach().clone() for tensor in model.parameters()]
    settings = TestTimeSettings.model_validate({"learning_rate": 1e-2, "steps": 8, "objective": OBJECTIVE})
    adapter = TestTimeTrainer(settings)
    with adapter(model, prompt) as done:
        changed = [not torch.equal(one, other) for one, other in zip(model.parameters(), before, strict=True)]
        assert done.losses[-1] < done.losses[0]
    names = [name for name, _ in model.named_parameters()]
    assert {name.split(".")[-3] for name, moved in zip(names, changed, strict=True) if moved} == {"lora_A", "lora_B"}
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), before, strict=True))
    small = sum(tensor.numel() for tensor in adapter._kept)
    assert small == sum(p.numel() for p in model.parameters() if p.requires_grad) < 0.5 * sum(map(torch.numel, before))


FAULTS = {
    "no config of peft": ({"r": 2}, "peft_config is a dict: expected one of peft"),
    "no such layer": (lora(target_modules=["nowhere"]), "peft_config: .*nowhere.*name layers in target_modules"),
    "the head": (lora(target_modules=["q_proj", "lm_head"]), "includes lm_head, where an adapter has no effect"),
    "the embeddings": (lora(target_modules=["embeddings"]), "includes model.embeddings, where an adapter has no"),
    "dropout": (lora(lora_dropout=0.1), "lora_dropout is 0.1: expected 0"),
    "whole layers": (lora(modules_to_save=["lm_head"]), "modules_to_save names"),
    "prompts": (PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"), "a read has no prompt to learn"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_what_would_have_no_effect_is_refused(what, tiny_model, arguments, rows):
    config, message = FAULTS[what]
    with pytest.raises(SettingError, match=message) as caught:
        RefineTrainer(tiny_model(), arguments(), train_dataset=rows, peft_config=config)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_adapters_and_a_second_adapter_are_refused(tiny_model, arguments, rows):
    args = arguments(max_steps=1, save_strategy="steps", save_steps=1)
    train(tiny_model(), args, rows)
    with pytest.raises(TrainingError, match=f"checkpoint-1: has no {ADAPTER}"):
        train(tiny_model(), args, rows, peft_config=lora())
    trainer = RefineTrainer(tiny_model(), arguments(), train_dataset=rows, peft_config=lora())
    with pytest.raises(SettingError, match="has adapters already"):
        RefineTrainer(trainer.model, arguments(), train_dataset=rows, peft_config=lora())


def test_without_peft_the_extra_is_named(tiny_model, arguments, rows, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SettingError, match=r"pip install 'refine-fast-weights\[lora\]'"):
        RefineTrainer(tiny_model(), arguments(), train_dataset=rows, peft_config=object())


def test_a_folder_of_adapters_is_refused_with_what_to_do(tiny_model, arguments, rows, tmp_path, prepared_folder):
    from flows.preflight import check_model as check_start
    from refine.evaluation import Inputs
    from refine.evaluation.evaluate import check_model, evaluate_model, model_tokenizer
    from refine.phases.prepared_data import Prepared

    trainer = train(tiny_model(), arguments(max_steps=1), rows, peft_config=lora())
    folder = tmp_path / "adapters"
    trainer.save_model(str(folder))
    for load in (
        lambda: from_pretrained(folder),
        lambda: evaluate_model(folder, Inputs()),
        lambda: model_tokenizer(folder),
        lambda: check_model(folder, None),
        lambda: check_start(str(folder), Prepared(prepared_folder)),
    ):
        with pytest.raises(
            ModelError, match=r"holds adapters \(LoRA\) alone: merge them into .* first, with peft"
        ) as said:
            load()
        assert "\n" not in str(said.value) and str(folder) in str(said.value)
