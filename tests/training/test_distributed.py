"""A function of a model runs inside its wrapper's forward. With real processes: tests/training/test_torchrun.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from refine.errors import TrainingError
from refine.training.distributed import call_through, decided_by_first, gathered


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


def test_one_process_decides_by_itself():
    assert decided_by_first(lambda: 3) == 3


@pytest.fixture
def process(monkeypatch):
    """Pretends to be process `rank` of two; what process 0 broadcasts is kept for process 1."""
    sent: list[object] = []

    def become(rank: int) -> None:
        def broadcast(objects: list[object], src: int) -> None:
            assert src == 0
            sent.extend(objects) if rank == 0 else objects.__setitem__(0, sent.pop(0))

        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
        monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)

    return become


def test_the_first_process_decides_for_all(process):
    process(0)
    assert decided_by_first(lambda: "checkpoint-4") == "checkpoint-4"
    process(1)
    assert decided_by_first(lambda: pytest.fail("process 1 does not decide")) == "checkpoint-4"


def test_an_error_of_the_deciding_process_is_raised_in_all(process):
    def fail() -> None:
        raise TrainingError("no checkpoint")

    for rank in (0, 1):
        process(rank)
        with pytest.raises(TrainingError, match="no checkpoint"):
            decided_by_first(fail if rank == 0 else lambda: pytest.fail("process 1 does not decide"))
