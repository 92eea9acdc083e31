"""A pass knows whether it runs again for the backward pass, in any thread, and after an error."""

import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from refine.models.recomputation import contexts, recomputing


def test_the_second_pass_knows_that_it_is_one():
    seen = []

    def layer(x):
        seen.append(recomputing())
        return x.sin()

    x = torch.ones(3, requires_grad=True)
    y = checkpoint(layer, x, use_reentrant=False, context_fn=contexts)
    thread = threading.Thread(target=y.sum().backward)  # a GPU's backward passes run in a thread of their own
    thread.start()
    thread.join()
    assert seen == [False, True] and not recomputing()


def test_an_error_in_the_second_pass_ends_it():
    first, second = contexts()
    with first:
        assert not recomputing()
    with pytest.raises(ValueError, match="in it"), second:
        assert recomputing()
        raise ValueError("in it")
    assert not recomputing()
