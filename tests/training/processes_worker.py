"""Run by torchrun in test_torchrun.py and test_two_machines.py: one of several processes of a training run.

python processes_worker.py OUTPUT (ddp | sharded | fsdp) [none] [frozen] [adapters] [marks] [lact] [shards] [bf16]
[counted] [crash | torn | stuck] trains the tiny model in OUTPUT, replicated or sharded. `shards`: each process writes
its part of a checkpoint; with `torn` process 1 dies when process 0 has written its part of the second one. `frozen`
trains a hybrid whose attention stays as it is, `adapters` trains LoRA alone. `marks` rolls out at marks, which not
all rows have. `none` only validates. `lact` trains LaCT with chunks that only some rows close. `counted` writes the
collectives of each step to OUTPUT. `crash` ends all processes after step 3; with `stuck`, those of the machine node1
stop there the first time, and OUTPUT/stuck says so. `fsdp` compares the gradients of every kind of model under FSDP2
with those of one process, in float32 and bfloat16, and writes the differences to OUTPUT.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

torch.set_num_threads(1)
CONFIG = {"model_type": "delta_net", "hidden_size": 16, "num_hidden_layers": 2, "num_heads": 2, "intermediate_size": 32}
HYBRID = {
    "model_type": "qwen3_5_text", "hidden_size": 16, "num_hidden_layers": 2, "full_attention_interval": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 32,
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 4, "linear_value_head_dim": 4,
}  # fmt: skip
OBJECTIVE = {"positions": 3, "rollout_length": 3, "min_prefix": 4}


def rows(marks: bool = False) -> list[dict[str, Any]]:
    """Ten rows of three lengths; with `marks`, two of three have some."""
    return [
        {
            **({"marks": [12 + row % 5, 25] if row % 3 else []} if marks else {}),
            "tokens": [(7 * place * place + 3 * row) % 64 for place in range(40 + 4 * (row % 3))],
            "document": f"play-{row}",
        }
        for row in range(10)
    ]


def model(config: dict[str, Any] = CONFIG) -> Any:
    """The same tiny model each time."""
    from refine.models import from_config

    torch.manual_seed(0)
    return from_config({**config, "vocab_size": 64})


def pretend_accelerators() -> None:
    """Make accelerate shard the model over processes on the CPU. It shards only for distributed types of accelerators;
    for MULTI_CPU it ignores the FSDP plugin silently, and Trainer uses DDP."""
    from accelerate.state import DistributedType, PartialState

    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def counted(output: Path) -> Any:
    """A callback that writes to OUTPUT/collectives.json what the processes send each other from the forward passes of
    each step to those of the next."""
    from transformers import TrainerCallback

    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.fixtures.collectives import Collectives

    class Counted(TrainerCallback):
        watch, steps = Collectives(), {}

        def on_train_begin(self, args, state, control, **kwargs):
            self.watch.__enter__()

        def on_step_begin(self, args, state, control, **kwargs):
            self.steps[state.global_step], self.watch.found = self.watch.found, Counter()

        def on_train_end(self, args, state, control, **kwargs):
            self.watch.__exit__(None, None, None)
            if state.is_world_process_zero:
                (output / "collectives.json").write_text(json.dumps(self.steps))

    return Counted()


def tear(output: Path) -> None:
    """Let process 1 die while a checkpoint is written, when process 0 has written its part."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    whole = HuggingFaceStorageWriter.write_data

    def write_data(self: Any, plan: Any, planner: Any) -> Any:
        part = output / ".checkpoint-4.unfinished" / "shards"
        while part.is_dir() and dist.get_rank() == 1:
            if any(path.stat().st_size for path in part.glob("shard-00001-*")):
                os._exit(7)
            time.sleep(0.01)
        return whole(self, plan, planner)

    HuggingFaceStorageWriter.write_data = write_data


def arguments(output: Path, sharded: bool, shards: bool, frozen: bool, bf16: bool, marks: bool) -> Any:
    """Six steps of five rows, in passes of two: with two processes the shares are uneven and there are stand-ins."""
    from refine.training.arguments import SHARDED, RefineArguments

    several: dict[str, Any] = {"ddp_backend": "gloo"} if "RANK" in os.environ else {}
    if sharded:
        several |= {"fsdp": True, "fsdp_config": dict(SHARDED)}
    return RefineArguments(
        output_dir=str(output),
        max_steps=6,
        sequences_per_step=5,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        objective=OBJECTIVE | ({"selection": "marked", "focus_weight": 0.3} if marks else {}),
        learning_rate=1e-3,
        save_strategy="steps",
        save_steps=2,
        use_cpu=True,
        disable_tqdm=True,
        freeze="attention" if frozen else "none",
        shard_checkpoints_above=0.0 if shards else 2.0,
        bf16=bf16,
        **several,
    )


def accident_after_three_steps(output: Path, kind: str) -> Any:
    """A callback that ends this process, or lets that of the machine node1 get stuck once."""
    from transformers import TrainerCallback

    class Accident(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step != 3:
                return
            if kind == "crash":
                os._exit(7)
            if socket.gethostname() == "node1" and not (output / "stuck").exists():
                (output / "stuck").touch()
                time.sleep(600)

    return Accident()


def lora() -> Any:
    """Adapters of three layers of a block."""
    from peft import LoraConfig

    return LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"])


def train(output: Path, more: set[str]) -> Any:
    """Train by `arguments` and save; `more`: words of the command line. With `none` only validate, as arm none does."""
    from refine.phases.run import _only_validate
    from refine.training.trainer import RefineTrainer

    sharded, marks = "sharded" in more, "marks" in more
    args = arguments(output, sharded, "shards" in more, "frozen" in more, "bf16" in more, marks)
    if sharded:
        pretend_accelerators()
    config = HYBRID if "frozen" in more else {**LACT, "lact_chunk_size": 42} if "lact" in more else CONFIG
    callbacks = [accident_after_three_steps(output, kind) for kind in ("crash", "stuck") if kind in more]
    trainer = RefineTrainer(
        model(config),
        args,
        train_dataset=rows(marks),
        eval_dataset=rows(marks)[:5],
        peft_config=lora() if "adapters" in more else None,
        callbacks=[*([counted(output)] if "counted" in more else []), *callbacks],
    )
    if "none" in more:
        _only_validate(trainer)
        assert hasattr(trainer.model, "unshard") is sharded
    else:
        trainer.train(resume_from_checkpoint=True)
    assert not sharded or trainer.accelerator.is_fsdp2
    metrics = trainer.evaluate()
    trainer.save_complete(output / "model")
    if trainer.args.should_save:
        history = [row for row in trainer.state.log_history if "train/loss" in row]
        (output / "found.json").write_text(json.dumps({"history": history, "validation": metrics}))
    return trainer


LACT = {
    "model_type": "lact_swiglu", "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32, "vocab_size": 64,
    "num_attn_heads": 2, "num_lact_heads": 2, "lact_chunk_size": 12, "window_size": 10,
}  # fmt: skip
SHARED_KINDS: dict[str, dict[str, Any]] = {
    "delta_net": {**CONFIG, "vocab_size": 64},
    "gated_deltanet": {**CONFIG, "vocab_size": 64, "model_type": "gated_deltanet", "head_dim": 8},
    "lact": LACT,
    "lact prenorm, low rank": {**LACT, "ttt_prenorm": True, "w0_w2_low_rank": 3},
    "qwen3_5": {**HYBRID, "vocab_size": 64, "rope_theta": 1e7, "linear_key_head_dim": 8, "linear_value_head_dim": 6},
    "olmo_hybrid": {
        "model_type": "olmo_hybrid",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "linear_num_key_heads": 2,
        "vocab_size": 64,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "rope_parameters": {"rope_theta": None},
    },
    "qwen3_5_moe": {
        "model_type": "qwen3_5_moe_text", "hidden_size": 16, "num_hidden_layers": 2, "full_attention_interval": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "rope_theta": 1e7, "vocab_size": 64,
        "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 6,
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24,
    },
    "kimi_linear": {
        "model_type": "kimi_linear", "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32,
        "linear_attn_config": {"kda_layers": [1], "full_attn_layers": [2], "num_heads": 2, "head_dim": 8},
        "num_attention_heads": 2, "kv_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6,
        "num_experts": 4, "num_experts_per_token": 2, "moe_intermediate_size": 16, "vocab_size": 64,
        "bos_token_id": None, "pad_token_id": None,
    },
}  # fmt: skip


def fsdp(output: Path) -> None:
    """The objective called through FSDP2's wrappers: the gradient of one process, from two halves of the batch.

    Writes the worst relative difference of every kind of model, with and without gradient checkpointing. In bfloat16
    the draws are given, as the next token can hang on a rounding.
    """
    dist.init_process_group("gloo")
    found: dict[str, Any] = {}
    for kind, config in SHARED_KINDS.items():
        for checkpointing, bf16 in ((False, False), (True, False), (False, True), (True, True)):
            key = f"{kind}{', gradient checkpointing' * checkpointing}{', bfloat16' * bf16}"
            try:
                found[key] = _fsdp_difference(config, checkpointing, bf16)
            except Exception as error:  # the other kinds are tried too
                found[key] = f"{type(error).__name__}: {str(error)[:200]}"
    if dist.get_rank() == 0:
        output.mkdir(exist_ok=True)
        (output / "found.json").write_text(json.dumps(found, indent=1))
    dist.destroy_process_group()


def _fsdp_difference(config: dict[str, Any], checkpointing: bool, bf16: bool) -> list[Any]:
    """Whether the draws are those of one process, and the worst relative difference of a gradient. Then a memory of the
    sharded model, which the blocks' parameters went into, is used outside of the blocks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from refine.models import from_config
    from refine.objective import next_sequence_step
    from refine.settings.objective import ObjectiveSettings
    from refine.training.arguments import sharded_precision
    from refine.training.distributed import call_through

    rank, settings = dist.get_rank(), ObjectiveSettings.model_validate({**OBJECTIVE, "rollouts": 2})
    tokens, seeds = torch.tensor([row["tokens"][:40] for row in rows()[:4]]), torch.arange(4)
    torch.manual_seed(0)
    plain = from_config(config)
    torch.manual_seed(0)
    sharded = from_config(config)
    plain.model.gradient_checkpointing = sharded.model.gradient_checkpointing = checkpointing
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        whole = next_sequence_step(plain, tokens, settings, seeds)
    whole.loss.backward()
    mesh = init_device_mesh("cpu", (2,))
    shared: dict[str, Any] = {"mesh": mesh, **({"mp_policy": sharded_precision()} if bf16 else {})}
    for block in sharded.model.layers:
        fully_shard(block, **shared)
    fully_shard(sharded, **shared)
    positions = {"positions": whole.positions[rank::2], "rollouts": whole.rollouts[rank::2]} if bf16 else {}
    counts = {"ntp_tokens": 4 * 39, "rollout_tokens": whole.rollout_tokens}

    def step(module: Any) -> Any:
        return next_sequence_step(module, tokens[rank::2], settings, seeds[rank::2], **positions, **counts)

    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        part = call_through(sharded, sharded, step)
    (part.loss * 2).backward()
    worst = 0.0
    for p, q in zip(sharded.parameters(), plain.parameters(), strict=True):
        if q.grad is not None:
            worst = max(worst, float((p.grad.full_tensor() - q.grad).norm() / q.grad.norm().clamp(min=1e-6)))
    fresh = sharded.fresh_memory(2).select([1, 0, 0])
    near = 2**-7 if bf16 else 0.0
    same = all(
        bool((x - y).double().norm() <= near * y.double().norm())
        for one, other in zip(fresh.layers, plain.fresh_memory(3).layers, strict=True)
        for x, y in zip(one.tensors().values(), other.tensors().values(), strict=True)
    )
    return [bool((part.rollouts == whole.rollouts[rank::2]).all()) and same, worst]


if __name__ == "__main__":
    if sys.argv[2] == "fsdp":
        fsdp(Path(sys.argv[1]))
    else:
        if "torn" in sys.argv:
            tear(Path(sys.argv[1]))
        train(Path(sys.argv[1]), set(sys.argv[2:]))
        if dist.is_initialized():
            dist.destroy_process_group()
