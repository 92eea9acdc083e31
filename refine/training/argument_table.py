"""Every field of transformers.TrainingArguments: it works in RefineTrainer, or it is refused when it is set.

An argument that would change nothing, or would fail in the middle of a training, is refused by name at construction.
"""

from __future__ import annotations

from typing import Any

from refine.errors import SettingError

WORKS = frozenset(
    [
        "output_dir",
        "per_device_train_batch_size",
        "num_train_epochs",
        "max_steps",
        "learning_rate",
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "warmup_steps",
        "optim",
        "optim_args",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "optim_target_modules",
        "gradient_accumulation_steps",
        "max_grad_norm",
        "bf16",
        "tf32",
        "activation_checkpointing",
        "activation_checkpointing_kwargs",
        "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
        "torch_empty_cache_steps",
        "logging_strategy",
        "logging_steps",
        "logging_first_step",
        "log_on_each_node",
        "include_num_input_tokens_seen",
        "log_level",
        "log_level_replica",
        "disable_tqdm",
        "report_to",
        "run_name",
        "project",
        "trackio_space_id",
        "trackio_bucket_id",
        "trackio_static_space_id",
        "eval_strategy",
        "eval_steps",
        "eval_delay",
        "per_device_eval_batch_size",
        "eval_on_start",
        "save_only_model",
        "save_strategy",
        "save_steps",
        "save_on_each_node",
        "save_total_limit",
        "hub_token",
        "hub_private_repo",
        "hub_model_id",
        "hub_revision",
        "load_best_model_at_end",
        "metric_for_best_model",
        "greater_is_better",
        "ignore_data_skip",
        "restore_callback_states_from_checkpoint",
        "full_determinism",
        "seed",
        "data_seed",
        "use_cpu",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_persistent_workers",
        "train_sampling_strategy",
        "ddp_find_unused_parameters",
        "ddp_bucket_cap_mb",
        "ddp_broadcast_buffers",
        "ddp_static_graph",
        "ddp_backend",
        "ddp_timeout",
        "fsdp",
        "fsdp_config",
        "do_train",
        "do_eval",
        "do_predict",
        "resume_from_checkpoint",
        "local_rank",
    ]
)
_BATCHES = "RefineTrainer makes its own batches"
_EVALUATION = "validation keeps no predictions"
_FORWARD = "a step does not run through the model's forward"
REFUSED = {
    "average_tokens_across_devices": "losses always count the tokens of all processes",
    "label_smoothing_factor": "the loss is that of the objective",
    "fp16": "a gradient that overflows ends the training; use bf16",
    "bf16_full_eval": "validation runs in the precision of training; set bf16",
    "fp16_full_eval": "validation runs in the precision of training; set bf16",
    "torch_compile": _FORWARD,
    "torch_compile_backend": _FORWARD,
    "torch_compile_mode": _FORWARD,
    "use_liger_kernel": "there are no Liger kernels for these models",
    "liger_kernel_config": "there are no Liger kernels for these models",
    "use_cache": "a training step keeps no cache",
    "neftune_noise_alpha": _FORWARD,
    "auto_find_batch_size": "lower per_device_train_batch_size; it changes no result",
    "logging_nan_inf_filter": "a loss that is not finite ends the training",
    "prediction_loss_only": _EVALUATION,
    "eval_do_concat_batches": _EVALUATION,
    "eval_use_gather_object": _EVALUATION,
    "eval_accumulation_steps": _EVALUATION,
    "include_for_metrics": _EVALUATION,
    "batch_eval_metrics": _EVALUATION,
    "enable_jit_checkpoint": "a killed run resumes from its last complete checkpoint; lower save_steps",
    "push_to_hub": "checkpoints are not uploaded; call push_to_hub() of the trainer after the training",
    "hub_strategy": "checkpoints are not uploaded; call push_to_hub() of the trainer after the training",
    "hub_always_push": "checkpoints are not uploaded; call push_to_hub() of the trainer after the training",
    "accelerator_config": "RefineTrainer divides the data itself",
    "parallelism_config": "only DDP and FSDP divide the work",
    "deepspeed": "use fsdp",
    "dataloader_drop_last": "each sequence counts once in each epoch",
    "dataloader_prefetch_factor": _BATCHES,
    "dataloader_multiprocessing_context": _BATCHES,
    "dataloader_in_order": _BATCHES,
    "remove_unused_columns": _BATCHES,
    "label_names": _BATCHES,
    "length_column_name": _BATCHES,
    "debug": "values that are not finite end the training by themselves",
    "skip_memory_metrics": "memory is not measured",
}  # fmt: skip


def refuse_unsupported(values: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Raise SettingError if one of `values`, the fields of RefineArguments, is refused and not its default."""
    for name, why in REFUSED.items():
        if name in values and values[name] != defaults[name]:
            raise SettingError(f"RefineArguments.{name} is {values[name]!r}, which has no effect here: {why}")
    if values.get("train_sampling_strategy") not in (None, "random", "sequential"):
        raise SettingError(
            f"RefineArguments.train_sampling_strategy is {values['train_sampling_strategy']!r}: "
            "expected 'random' or 'sequential'"
        )
