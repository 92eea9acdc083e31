"""Statistics in pieces equal those from all logits at once, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from refine.ops import token_statistics as ts
from tests.fixtures.launches import saved_bytes

BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2}


def inputs(tokens: int, width: int, vocabulary: int, dtype: torch.dtype, tied: bool = False):
    """Random hidden states, head, targets and weights (some of them 0), from a fixed seed."""
    generator = torch.Generator().manual_seed(tokens * vocabulary)
    head = (torch.randn(vocabulary, width, generator=generator) * 0.4).to(dtype).requires_grad_()
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    weights = torch.rand(tokens, generator=generator) * (torch.rand(tokens, generator=generator) > 0.2)
    if tied:
        return head[torch.randint(0, vocabulary, (tokens,), generator=generator)] * 2, head, targets, weights
    return torch.randn(tokens, width, generator=generator).to(dtype).requires_grad_(), head, targets, weights


def close(a: torch.Tensor, b: torch.Tensor, bound: float) -> bool:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm()) <= bound * float(b.norm())


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of 128 tokens, the least there is, so that a few hundred tokens are several pieces and a rest."""
    monkeypatch.setitem(ts.PIECE_ELEMENTS, "cpu", 1)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("tokens", "vocabulary"), [(1, 3), (127, 50), (128, 257), (397, 101)])
def test_statistics_and_gradients_equal_those_of_all_logits_at_once(small_pieces, tokens, vocabulary, dtype):
    hidden, head, targets, weights = inputs(tokens, 24, vocabulary, dtype)
    found, wanted = (f(hidden, head, targets, weights) for f in (ts.token_statistics, ts.token_statistics_by_logits))
    assert torch.equal(found.correct, wanted.correct)
    for name in ("loss", "cross_entropy", "entropy"):
        assert close(getattr(found, name), getattr(wanted, name), BOUNDS[dtype]), name
    gradients = [torch.autograd.grad(3 * x.loss, [hidden, head]) for x in (found, wanted)]
    assert all(close(a, b, BOUNDS[dtype]) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_and_gradients_equal_those_of_all_logits_at_once(small_pieces, temperature, dtype):
    hidden, head, targets, weights = inputs(301, 24, 101, dtype)
    found, wanted = (f(hidden, head, targets, temperature) for f in (ts.token_log_probs, ts.token_log_probs_by_logits))
    assert close(found, wanted, BOUNDS[dtype])
    gradients = [torch.autograd.grad((weights * x).sum(), [hidden, head]) for x in (found, wanted)]
    assert all(close(a, b, BOUNDS[dtype]) for a, b in zip(*gradients, strict=True))


def test_a_head_tied_to_the_embedding_gets_both_gradients(small_pieces):
    gradients = []
    for statistics in (ts.token_statistics, ts.token_statistics_by_logits):
        hidden, head, targets, weights = inputs(301, 24, 101, torch.float64, tied=True)
        gradients.append(torch.autograd.grad(statistics(hidden, head, targets, weights).loss, head)[0])
    assert close(*gradients, 1e-12)


def test_leading_dimensions_are_kept_and_the_default_is_the_mean():
    hidden, head, targets, _ = inputs(60, 24, 101, torch.float32)
    square = ts.token_statistics(hidden.view(5, 12, 24), head, targets.view(5, 12))
    assert square.entropy.shape == square.correct.shape == (5, 12)
    assert torch.allclose(square.loss, torch.nn.functional.cross_entropy(hidden @ head.T, targets))
    assert ts.token_log_probs(hidden.view(5, 12, 24), head, targets.view(5, 12)).shape == (5, 12)


def test_only_the_gradients_that_are_asked_for_are_formed():
    hidden, head, targets, weights = inputs(60, 24, 101, torch.float32)
    ts.token_statistics(hidden.detach(), head, targets, weights).loss.backward()
    assert hidden.grad is None and head.grad is not None
    assert not ts.token_statistics(hidden.detach(), head.detach(), targets, weights).loss.requires_grad


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.count += op.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        return op(*args, **(kwargs or {}))


def test_without_gradient_the_same_bits_come_from_one_product_a_piece(small_pieces):
    hidden, head, targets, weights = inputs(397, 24, 101, torch.float32)
    with Products() as with_gradient:
        wanted = ts.token_statistics(hidden, head, targets, weights)
    with torch.no_grad(), Products() as without:
        found = ts.token_statistics(hidden, head, targets, weights)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert with_gradient.count == 3 * 4 and without.count == 4  # pieces of 128 tokens


def test_a_retained_graph_gives_the_same_gradient_twice():
    hidden, head, targets, weights = inputs(60, 24, 101, torch.float32)
    loss = ts.token_statistics(hidden, head, targets, weights).loss
    first = torch.autograd.grad(loss * 5, [hidden, head], retain_graph=True)
    second = torch.autograd.grad(loss * 5, [hidden, head])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_autocast_multiplies_in_its_dtype_and_sums_in_float32():
    hidden, head, targets, weights = inputs(301, 24, 101, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ts.token_statistics(hidden, head, targets, weights)
        wanted = ts.token_statistics_by_logits(hidden, head, targets, weights)
        chosen = ts.token_log_probs(hidden, head, targets)
    assert found.loss.dtype == chosen.dtype == torch.float32
    assert close(found.cross_entropy, wanted.cross_entropy, 1e-6) and close(-chosen, wanted.cross_entropy, 1e-6)
    gradients = [torch.autograd.grad(x.loss, [hidden, head]) for x in (found, wanted)]
    assert all(a.dtype == torch.float32 and close(a, b, 1e-2) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("function", [ts.token_statistics, ts.token_log_probs])
def test_no_tensor_of_tokens_times_vocabulary_is_ever_made(function, monkeypatch):
    monkeypatch.setitem(ts.PIECE_ELEMENTS, "cpu", 1)
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            nonlocal largest
            made = op(*args, **(kwargs or {}))
            for x in made if isinstance(made, (tuple, list)) else [made]:
                largest = max(largest, x.numel()) if isinstance(x, torch.Tensor) else largest
            return made

    hidden, head, targets, _ = inputs(1000, 24, 500, torch.float32)
    with Sizes():
        found = function(hidden, head, targets)
        (found.loss if isinstance(found, ts.TokenStatistics) else found.sum()).backward()
    assert 0 < largest <= 128 * 500


@pytest.mark.parametrize("autocast", [False, True])
def test_nothing_as_large_as_the_logits_is_kept_for_the_backward_pass(autocast):
    """What is kept are the gradients themselves; the plain twin keeps 4 bytes or more of each token and vocabulary."""
    hidden, head, targets, weights = inputs(1000, 24, 500, torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        _, kept = saved_bytes(lambda: ts.token_statistics(hidden, head, targets, weights))
        _, chosen = saved_bytes(lambda: ts.token_log_probs(hidden, head, targets))
        _, plain = saved_bytes(lambda: ts.token_statistics_by_logits(hidden, head, targets, weights))
    assert kept == 4 * (hidden.numel() + head.numel())
    assert chosen <= 4 * (hidden.numel() + head.numel()) + 12 * 1000
    assert plain > 4 * 1000 * 500


def test_a_rounded_gradient_of_the_logits_is_that_of_rounding_it_last():
    torch.manual_seed(0)
    probs, weight, target = torch.randn(9, 50).softmax(-1), torch.randn(9, 1), torch.randint(0, 50, (9, 1))
    exact = probs.clone().mul_(weight).scatter_add_(-1, target, -weight)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert torch.equal(ts._logits_gradient(probs.clone(), weight, target, dtype), exact.to(dtype))
