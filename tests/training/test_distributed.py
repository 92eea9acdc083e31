"""A function of a model runs inside its wrapper's forward. With real processes: tests/training/test_torchrun.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from refine.training.distributed import call_through, gathered


class Wrapper(nn.Module):
    """Calls its module as DDP does, and counts."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *args: object) -> object:
        self.calls += 1
        return self.module(*args)


def test_the_function_runs_inside_the_wrapper_s_forward():
    module = nn.Linear(2, 3)
    wrapper, x = Wrapper(module), torch.ones(1, 2)
    found = call_through(wrapper, module, lambda one: (one, one(x)))
    assert found[0] is module and torch.equal(found[1], module(x)) and wrapper.calls == 1
    assert "forward" not in module.__dict__


def test_without_a_wrapper_it_is_a_plain_call_unless_the_module_has_hooks():
    module, hooked = nn.Linear(2, 3), []
    assert call_through(module, module, lambda one: 7) == 7
    module.register_forward_pre_hook(lambda *_: hooked.append(True))
    assert call_through(module, module, lambda one: 7) == 7 and hooked == [True]


def test_the_forward_is_restored_after_an_error():
    module = nn.Linear(2, 3)
    own = module.forward = lambda x: x  # as accelerate sets one on the instance

    def fail(_: nn.Module) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        call_through(Wrapper(module), module, fail)
    assert module.forward is own


def test_one_process_gathers_its_own_value():
    assert gathered("here") == ["here"]
