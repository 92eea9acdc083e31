"""Autograd functions run as plain functions where nothing asks for a gradient.

`torch.autograd.Function.apply` costs some 20 microseconds even then: more than the work itself where a token is read at
a time, as in rollouts and decoding.
"""

from __future__ import annotations

from typing import Any

import torch


class _NoContext:
    """Takes what `forward` keeps for a backward pass that never comes, and drops it."""

    def save_for_backward(self, *_: Any) -> None:
        """Keep nothing."""

    def mark_non_differentiable(self, *_: Any) -> None:
        """Nothing is differentiable here."""

    def set_materialize_grads(self, _: bool) -> None:
        """No gradient comes."""


def run(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """`function.apply(*arguments)`; without gradients its `forward` alone."""
    if torch.is_grad_enabled():
        return function.apply(*arguments)
    return function.forward(_NoContext(), *arguments)
