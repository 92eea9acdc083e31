"""Training under wrappers (DDP, FSDP): call a function of a model through its wrapper; gather values of all processes,
or let the first one decide.

A wrapper acts in the model's forward, but the objective calls other methods (it reads, taps and rolls out). So for one
call the objective replaces the forward, as in TRL and Lightning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from refine.errors import RefineError

R = TypeVar("R")


def call_through(wrapper: nn.Module, module: nn.Module, function: Callable[[nn.Module], R]) -> R:
    """`function(module)`, called inside the forward pass of `wrapper` (if `wrapper` is not `module` itself).

    The wrapper prepares its parameters and its gradient reduction as for any forward pass, and returns what `function`
    returns. It finds tensors in tuples, dicts and dataclasses.
    """
    if wrapper is module and not _hooked(module):
        return function(module)
    own = module.__dict__.get("forward")  # accelerate may set one on the instance

    def restore() -> None:
        if own is None:
            module.__dict__.pop("forward", None)
        else:
            module.forward = own

    def redirected(*_: Any, **__: Any) -> R:
        restore()
        _gather_head(module)
        return function(module)

    module.forward = redirected
    try:
        return wrapper()
    finally:
        restore()


def _gather_head(module: nn.Module) -> None:
    """FSDP2 gathers an output layer that is sharded apart when the layer is called. The objective uses the weight and
    never calls the layer: ask for it here. (Without adapters accelerate gathers it with the final norm.)"""
    gather = getattr(getattr(module, "lm_head", None), "unshard", None)
    if gather is not None:
        gather()


def _hooked(module: nn.Module) -> bool:
    """Whether calling the module does more than its forward: FSDP2 has no wrapper object, it works through hooks."""
    return bool(module._forward_pre_hooks or module._forward_hooks)


def several() -> bool:
    """Whether there is a process group."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def rows_of_all(row: Tensor) -> Tensor:
    """`row` [N] of every process, by rank: [processes, N], bit for bit, in one collective and without pickles. Length
    and dtype must be the same in all. Without a process group: [1, N]."""
    if not several():
        return row[None]
    rows = row.new_empty(torch.distributed.get_world_size(), len(row))
    torch.distributed.all_gather(list(rows.unbind()), row)
    return rows


def gathered(value: R) -> list[R]:
    """`value` of every process, by rank, of any kind: pickled, so it is for the beginning and the end of a run. Without
    a process group: this process's alone."""
    if not several():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def decided_by_first(decide: Callable[[], R]) -> R:
    """What `decide` returns in process 0, in all processes; the others do not call it. A RefineError that it raises in
    process 0 is raised in all. Without a process group: `decide()`."""
    if not several():
        return decide()
    decision: list[Any] = [None]
    if torch.distributed.get_rank() == 0:
        try:
            decision = [decide()]
        except RefineError as error:
            decision = [error]
    torch.distributed.broadcast_object_list(decision, src=0)
    if isinstance(decision[0], RefineError):
        raise decision[0]
    return decision[0]
