"""Training under wrappers (DDP, FSDP): functions of a model called through its wrapper, and values of all processes.

The objective reads, taps and rolls out; it does not call the model's forward, where a wrapper hooks in. So for one
call the forward is the objective (as TRL and Lightning redirect theirs).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

R = TypeVar("R")


def call_through(wrapper: nn.Module, module: nn.Module, function: Callable[[nn.Module], R]) -> R:
    """`function(module)`, within the forward pass of `wrapper` where that is another object than `module`.

    The wrapper prepares its parameters and its gradient reduction as for any forward pass. What `function` returns
    comes back as it is; a wrapper that looks for tensors finds them in tuples, dicts and dataclasses.
    """
    if wrapper is module and not _hooked(module):
        return function(module)
    own = module.__dict__.get("forward")  # set on the instance by accelerate, else the class's

    def restore() -> None:
        if own is None:
            module.__dict__.pop("forward", None)
        else:
            module.forward = own

    def redirected(*_: Any, **__: Any) -> R:
        restore()
        return function(module)

    module.forward = redirected
    try:
        return wrapper()
    finally:
        restore()


def _hooked(module: nn.Module) -> bool:
    """Whether calling the module does more than its forward: FSDP2 shards in place and works through hooks."""
    return bool(module._forward_pre_hooks or module._forward_hooks)


def gathered(value: R) -> list[R]:
    """`value` of every process, by rank; of this one alone where there is no process group."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
