"""The arguments of RefineTrainer: those of transformers with the paper's defaults, and the objective's settings."""

from __future__ import annotations

import math
import os
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, get_args

import torch
from transformers import TrainingArguments

from refine.errors import SettingError
from refine.settings.base import LARGEST_SEED, validated
from refine.settings.objective import ObjectiveSettings
from refine.settings.training import Freeze, PhaseSettings
from refine.training.argument_table import refuse_unsupported

if TYPE_CHECKING:
    from torch.distributed.fsdp import MixedPrecisionPolicy

SHARDED: dict[str, Any] = {
    "version": 2,
    "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "transformer_layer_cls_to_wrap": ["Block"],
    "state_dict_type": "FULL_STATE_DICT",
}


@dataclass
class RefineArguments(TrainingArguments):
    """transformers.TrainingArguments for training by next-sequence prediction.

    Defaults that differ are the paper's (constant learning rate 1e-6, weight decay 0.01), or make a run complete in
    itself (every step is logged, and no service gets reports unless the user names it).
    """

    objective: ObjectiveSettings | dict[str, Any] = field(
        default_factory=lambda: ObjectiveSettings(),
        metadata={"help": "options of a REFINE step; nsp_weight 0 is plain SFT"},
    )
    sequences_per_step: int | None = field(
        default=None,
        metadata={
            "help": "sequences of an optimizer step, all processes together, however many a forward pass takes; "
            "None: per_device_train_batch_size x gradient_accumulation_steps x processes"
        },
    )
    max_length: int | None = field(default=None, metadata={"help": "longer documents are cut into pieces [tokens]"})
    packing: bool = field(default=False, metadata={"help": "pack several documents into each row of max_length tokens"})
    prompt_steps: int = field(
        default=0,
        metadata={
            "help": "for data with prompts and answers: optimizer steps of the objective on the prompts of each batch "
            "of sequences_per_step samples, before the step on its answers (nested); 0: answers only"
        },
    )
    validation_rollouts: bool = field(
        default=True, metadata={"help": "also sample rollouts on held-out sequences and log their rewards"}
    )
    freeze: str = field(
        default="none",
        metadata={"help": "'attention': the attention mixers of a hybrid are not trained (refine.training.freezing)"},
    )
    shard_checkpoints_above: float = field(
        default=2.0,
        metadata={
            "help": "FSDP: if the parameters take more GB (10^9 bytes) than this, each process writes its own part of "
            "a checkpoint; else process 0 writes the whole"
        },
    )
    learning_rate: float = 1e-6
    weight_decay: float = 0.01
    lr_scheduler_type: str = "constant"
    logging_steps: float = 1
    logging_first_step: bool = True
    logging_nan_inf_filter: bool = False
    report_to: str | list[str] | None = "none"
    save_total_limit: int | None = 2
    remove_unused_columns: bool = False
    restore_callback_states_from_checkpoint: bool = True
    ddp_find_unused_parameters: bool | None = False
    log_level: str = "error"
    log_level_replica: str = "error"

    def __post_init__(self) -> None:
        if not isinstance(self.objective, ObjectiveSettings):
            self.objective = validated(ObjectiveSettings, self.objective, "RefineArguments.objective")
        if self.freeze not in get_args(Freeze):
            raise SettingError(f"RefineArguments.freeze is {self.freeze!r}: expected 'none' or 'attention'")
        refuse_unsupported({one.name: getattr(self, one.name) for one in fields(self)}, _defaults(type(self)))
        self._refuse_numbers_out_of_range()
        if self.disable_tqdm is None:  # transformers would decide by a log level that the first trainer changes
            self.disable_tqdm = False
        super().__post_init__()
        if self.bf16 and (self.fsdp_plugin_args or {}).get("fsdp_version") == 2:
            self.fsdp_plugin_args["mixed_precision_policy"] = sharded_precision()

    def _refuse_numbers_out_of_range(self) -> None:
        """Raises SettingError: a float that is not finite, an Adam beta outside [0, 1), a seed that numpy refuses."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        for name, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise SettingError(f"RefineArguments.{name} is {value}: expected a finite number")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= values[name] < 1:
                raise SettingError(f"RefineArguments.{name} is {values[name]}: expected at least 0 and less than 1")
        for name in ("seed", "data_seed"):
            if values[name] is not None and not 0 <= values[name] <= LARGEST_SEED:
                raise SettingError(f"RefineArguments.{name} is {values[name]}: expected 0 to {LARGEST_SEED}")

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        values = super().to_dict()
        values["objective"] = self.objective.model_dump() if isinstance(self.objective, ObjectiveSettings) else None
        return values


def arguments_of(
    phase: PhaseSettings,
    objective: ObjectiveSettings,
    output: str,
    seed: int,
    sharding: str = "none",
    **more: Any,
) -> RefineArguments:
    """The arguments for a phase's section of params.yaml. `more` overrides single ones.

    Raises SettingError: `sharding` is "full" without a GPU, or the machine has GPUs but fewer than processes.
    """
    recompute = "activation_checkpointing" if _has("activation_checkpointing") else "gradient_checkpointing"
    values: dict[str, Any] = {
        "output_dir": output,
        "objective": objective,
        "max_steps": phase.steps,
        "sequences_per_step": phase.sequences_per_step,
        "per_device_train_batch_size": min(phase.sequences_per_pass, phase.sequences_per_step),
        "per_device_eval_batch_size": phase.sequences_per_pass,
        "learning_rate": phase.learning_rate,
        "lr_scheduler_type": phase.schedule,
        "warmup_steps": phase.warmup_steps,
        "adam_beta1": phase.adam_betas[0],
        "adam_beta2": phase.adam_betas[1],
        "weight_decay": phase.weight_decay,
        "max_grad_norm": phase.max_gradient_norm,
        "bf16": phase.precision == "bfloat16",
        "freeze": phase.freeze,
        recompute: phase.gradient_checkpointing,
        "save_strategy": "steps",
        "save_steps": phase.checkpoint_every,
        "eval_strategy": "steps",
        "eval_steps": phase.evaluate_every,
        "eval_on_start": True,
        "metric_for_best_model": "loss",
        "load_best_model_at_end": phase.keep == "best",
        "disable_tqdm": True,
        "seed": seed,
    }
    _check_devices()
    if not torch.cuda.is_available():
        values |= {"use_cpu": True, "ddp_backend": "gloo" if "RANK" in os.environ else None}
    if sharding == "full":
        values |= _sharded()
    return RefineArguments(**{**values, **more})


def _defaults(kind: type[RefineArguments]) -> dict[str, Any]:
    return {
        one.name: one.default if one.default_factory is MISSING else one.default_factory()
        for one in fields(kind)
        if one.default is not MISSING or one.default_factory is not MISSING
    }


def _check_devices() -> None:
    """Raises SettingError if this machine has GPUs, but fewer than processes."""
    processes, devices = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if 0 < devices < processes:
        raise SettingError(
            f"training.processes is {processes}, and this machine has {devices} GPU{'s' if devices > 1 else ''}: "
            "each process needs one"
        )


def _sharded() -> dict[str, Any]:
    """FSDP2 over the model's blocks. Checkpoints hold unsharded tensors, so any number of processes can resume them."""
    if not torch.cuda.is_available():
        raise SettingError("training.sharding is 'full', but there is no GPU to shard the model over: use 'none'")
    if "RANK" not in os.environ:
        raise SettingError(
            "training.sharding is 'full', but there is one process: use 'none', or more training.processes"
        )
    return {"fsdp": True, "fsdp_config": dict(SHARDED)}


def sharded_precision() -> MixedPrecisionPolicy:
    """How FSDP2 shares a model that is trained in bfloat16: the processes send each other weights in bfloat16, as
    autocast would round them, and add up gradients in float32.

    accelerate's own policy also rounds what goes into each block, what the step returns (losses, entropies, rewards)
    and sums of gradients. Here these stay in float32, as in one process. Only the weights that autocast does not
    round (norms, convolutions, decays, routers, LaCT's first fast weights) are rounded too.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy  # takes a second

    return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)


def _has(name: str) -> bool:
    return name in {one.name for one in fields(TrainingArguments)}
