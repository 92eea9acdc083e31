"""Sharded checkpoints: each process writes its own part of the parameters and of the optimizer's state.

torch.distributed.checkpoint writes and reads them, as safetensors (`HuggingFaceStorageWriter`), so any number of
processes can read what another number wrote. Its own format keeps an index that is a pickle; here the index is the
header of each file, and the optimizer's numbers are JSON: reading a folder runs no code in it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from refine.errors import TrainingError, reason
from refine.paths import SHARDS
from refine.system.readers import in_form, read_json
from refine.training import checkpoints

GROUPS = "optimizer.json"  # in the folder SHARDS: the numbers of the optimizer's groups
FILE_BYTES = 1 << 30  # of a file, about: a process lays out one file in its memory at a time


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of all parameters, of a sharded model too."""
    return sum(one.numel() * one.element_size() for one in model.parameters())


def save(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, dict[str, Any]]:
    """Write this process's shards to `checkpoint`; all processes call it. Returns size and SHA-256 of the files that
    this process has written, by their paths in `checkpoint`."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    folder, rank = checkpoint / SHARDS, torch.distributed.get_rank()
    tensors = dict(_tensors(model, optimizer))
    folder.mkdir(exist_ok=True)
    if rank == 0 and optimizer is not None:
        groups = json.dumps({"groups": _groups(model, optimizer)}, indent=1, allow_nan=False)
        (folder / GROUPS).write_text(groups, encoding="utf-8")
    writer = HuggingFaceStorageWriter(str(folder), _files(tensors), save_distributed=True)
    dcp.save(tensors, storage_writer=writer)
    own = sorted(folder.glob(f"shard-{rank + 1:05}-*"))
    return {f"{SHARDS}/{path.name}": checkpoints.entry(path) for path in own}


def load(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Read the shards of `checkpoint` into `model` and `optimizer`; all processes call it.

    Raises TrainingError: the shards are of another model or optimizer.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    reader = HuggingFaceStorageReader(str(checkpoint / SHARDS))
    if optimizer is not None:
        get_optimizer_state_dict(model, optimizer)  # makes its state, by a step with learning rate 0
        _set_groups(checkpoint / SHARDS / GROUPS, model, optimizer)
    try:
        if optimizer is not None:
            _forget_others(model, optimizer, set(reader.read_metadata().state_dict_metadata))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process may read them too
            dcp.load(dict(_tensors(model, optimizer)), storage_reader=reader)
    except (CheckpointException, SafetensorError, RuntimeError, ValueError, KeyError) as error:
        why = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        raise TrainingError(
            f"{checkpoint / SHARDS}: does not fit this model and optimizer ({reason(str(why), 200)}): resume from a "
            "checkpoint of the same model"
        ) from None


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors, which share memory with the model and the optimizer; tied ones come once. A single number is a
    row of one, since safetensors reads no slices of less."""
    once = {*dict(model.named_parameters()), *dict(model.named_buffers())}
    for name, tensor in model.state_dict().items():
        if name in once:
            yield f"model.{name}", tensor.detach()
    if optimizer is None:
        return
    for name, parameter in _trained(model, optimizer):
        for key, value in sorted(optimizer.state.get(parameter, {}).items()):
            if isinstance(value, Tensor):
                yield f"optimizer.{name}.{key}", value.detach() if value.dim() else value.detach().reshape(1)


def _trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
    """The optimizer's parameters with their names, in its order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [(names[id(one)], one) for group in optimizer.param_groups for one in group["params"]]


def _forget_others(model: nn.Module, optimizer: torch.optim.Optimizer, stored: set[str]) -> None:
    """Drop the state of parameters that had none, since they had no gradient."""
    held = {name.rpartition(".")[0] for name in stored}
    for name, parameter in _trained(model, optimizer):
        if f"optimizer.{name}" not in held:
            optimizer.state.pop(parameter, None)


def _files(tensors: dict[str, Tensor]) -> dict[str, int]:
    """The number of the file that each tensor goes to, from 1: about FILE_BYTES of this process in each."""
    local = [x.to_local() if hasattr(x, "to_local") else x for x in tensors.values()]
    ends = accumulate(x.numel() * x.element_size() for x in local)
    return {name: 1 + end // FILE_BYTES for name, end in zip(tensors, ends, strict=True)}


def _groups(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The numbers of each group of parameters, such as its learning rate, and its parameters' names."""
    names = {id(parameter): name for name, parameter in _trained(model, optimizer)}
    return [
        {
            **{key: value for key, value in group.items() if key != "params"},
            "params": [names[id(x)] for x in group["params"]],
        }
        for group in optimizer.param_groups
    ]


def _set_groups(file: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    what = "the groups of an optimizer"
    values = read_json(file, what, TrainingError, "is missing: resume from another checkpoint")
    with in_form(file, what, TrainingError, "resume from another checkpoint"):
        pairs = zip(optimizer.param_groups, _groups(model, optimizer), values["groups"], strict=True)
        for group, own, found in pairs:
            if found["params"] != own["params"] or set(found) != set(own):
                raise ValueError("its parameters or settings are not this optimizer's")
            for key in set(found) - {"params"}:
                group[key] = tuple(found[key]) if isinstance(group[key], tuple) else found[key]
