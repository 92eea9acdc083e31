"""From a phase's settings to RefineArguments. Their own checks: tests/training/test_trainer.py."""

from __future__ import annotations

import pytest
import torch

from refine import settings
from refine.errors import SettingError
from refine.training.arguments import SHARDED, RefineArguments, arguments_of


@pytest.fixture
def mid(params):
    return settings.load(params).training.mid


def test_a_phase_s_settings_become_trainer_s_arguments(mid, tmp_path):
    made = arguments_of(mid, mid.objective, str(tmp_path), 7, max_length=64, save_steps=5)
    assert (made.max_steps, made.sequences_per_step, made.seed) == (6, 4, 7)
    assert (made.per_device_train_batch_size, made.learning_rate, made.eval_steps) == (4, 1e-2, 3)
    assert made.objective == mid.objective and made.max_length == 64
    assert made.save_steps == 5, "single arguments override"


def test_the_defaults_are_the_paper_s(tmp_path):
    made = RefineArguments(output_dir=str(tmp_path))
    assert (made.learning_rate, made.weight_decay, made.lr_scheduler_type) == (1e-6, 0.01, "constant")


def test_a_pass_is_never_larger_than_a_step(mid, tmp_path):
    large = mid.model_copy(update={"sequences_per_pass": 64})
    assert arguments_of(large, mid.objective, str(tmp_path), 0).per_device_train_batch_size == 4


def test_sharding_without_a_gpu_is_refused(mid, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingError, match="there is no GPU to shard the model over: use 'none'"):
        arguments_of(mid, mid.objective, str(tmp_path), 0, sharding="full")


def test_sharding_over_one_process_is_refused(mid, tmp_path, monkeypatch):
    """accelerate would ask for torchrun's variables with a traceback."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(
        SettingError, match=r"'full', but there is one process: use 'none', or more training\.processes"
    ):
        arguments_of(mid, mid.objective, str(tmp_path), 0, sharding="full")


def test_what_processes_send_each_other_in_16_bits_is_weights_alone(tmp_path):
    sharded = {"output_dir": str(tmp_path), "use_cpu": True, "fsdp": True, "fsdp_config": dict(SHARDED)}
    policy = RefineArguments(bf16=True, **sharded).fsdp_plugin_args["mixed_precision_policy"]
    assert policy.param_dtype == torch.bfloat16 and policy.reduce_dtype == torch.float32
    assert policy.output_dtype is None and not policy.cast_forward_inputs
    assert "mixed_precision_policy" not in RefineArguments(**sharded).fsdp_plugin_args


def test_more_processes_than_gpus_are_refused(mid, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(SettingError, match="processes is 2, and this machine has 1 GPU: each process needs one"):
        arguments_of(mid, mid.objective, str(tmp_path), 0)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"learning_rate": float("inf")}, "learning_rate is inf: expected a finite number"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm is nan"),
        ({"adam_beta2": 1.0}, "adam_beta2 is 1.0: expected at least 0 and less than 1"),
        ({"seed": 2**32}, "seed is 4294967296: expected 0 to 4294967295"),
        ({"data_seed": -1}, "data_seed is -1"),
    ],
)
def test_numbers_that_no_training_can_use_are_refused_at_construction(tmp_path, values, said):
    with pytest.raises(SettingError, match=said):
        RefineArguments(output_dir=str(tmp_path), **values)
