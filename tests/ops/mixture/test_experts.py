"""Tokens sorted by expert = each token by itself: outputs and all gradients."""

import pytest
import torch

from refine.ops.mixture import experts as op

BOUNDS = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2e-2}
NAMES = ("x", "gate_up", "down", "weights")


def given(tokens, number, k, hidden, inner, dtype=torch.float64, only=None):
    """Arguments of `mix`; `only`: the experts that are hit."""
    torch.manual_seed(tokens + number)
    scores = torch.rand(tokens, number)
    if only is not None:
        scores[:, [e for e in range(number) if e not in only]] = -1
    chosen = scores.topk(k, -1).indices
    x, gate_up, down = (
        torch.randn(*shape, dtype=dtype).requires_grad_()
        for shape in ((tokens, hidden), (number, 2 * inner, hidden), (number, hidden, inner))
    )
    weights = torch.rand(tokens, k, dtype=torch.promote_types(dtype, torch.float32)).requires_grad_()
    return x, gate_up, down, chosen, weights


def run(function, arguments, upstream):
    x, gate_up, down, _, weights = arguments
    y = function(*arguments)
    return y, torch.autograd.grad(y, (x, gate_up, down, weights), upstream.to(y.dtype))


def compare(found, expected, bound):
    assert found.dtype == expected.dtype and found.shape == expected.shape
    found, expected = found.detach().double(), expected.detach().double()
    assert float((found - expected).norm() / expected.norm().clamp(min=1e-30)) < bound


CASES = [  # tokens, experts, of each token, hidden, inner
    ((1, 1, 1, 3, 5), None),
    ((7, 4, 2, 6, 3), None),
    ((61, 9, 4, 10, 7), None),
    ((30, 16, 2, 8, 8), (3, 4, 15)),  # most experts are empty, the first among them
    ((5, 3, 3, 4, 4), None),  # all experts
]


@pytest.mark.parametrize(("sizes", "only"), CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_outputs_and_gradients_are_the_twins(sizes, only, dtype):
    arguments = given(*sizes, dtype=dtype, only=only)
    upstream = torch.randn(arguments[0].shape, dtype=dtype)
    y, gradients = run(op.mix, arguments, upstream)
    expected, wanted = run(op.mix_by_token, arguments, upstream)
    compare(y, expected, BOUNDS[dtype])
    for name, one, other in zip(NAMES, gradients, wanted, strict=True):
        compare(one, other, BOUNDS[dtype] * 2)
        if only is not None and name in ("gate_up", "down"):
            assert [e for e in range(sizes[1]) if one[e].any()] == sorted(only), "an expert without tokens has none"


def test_gradients_are_those_of_finite_differences():
    arguments = given(5, 4, 2, 3, 2)
    chosen = arguments[3]
    floats = [one for one in arguments if one is not chosen]
    assert torch.autograd.gradcheck(lambda x, g, d, w: op.mix(x, g, d, chosen, w), floats)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("only", [None, (2, 5, 6)], ids=str)
def test_grouped_products_are_the_loop_over_experts(dtype, only, monkeypatch):
    """torch's grouped products, which GPUs take, also run on a CPU."""
    arguments = given(41, 8, 3, 32, 16, dtype=dtype, only=only)
    upstream = torch.randn(41, 32)
    y, gradients = run(op.mix, arguments, upstream)
    monkeypatch.setattr(op, "_has_grouped", lambda *_: True)
    monkeypatch.setattr(op, "_one_by_one", None)
    grouped, grouped_gradients = run(op.mix, arguments, upstream)
    compare(grouped, y, BOUNDS[dtype])
    for one, other in zip(grouped_gradients, gradients, strict=True):
        compare(one, other, BOUNDS[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bits_sum_in_32(dtype):
    """No further from float64 than each token by itself in 16 bits, which rounds each expert's answer."""
    x, gate_up, down, chosen, weights = given(50, 8, 8, 32, 16, dtype=dtype)
    exact = op.mix_by_token(x.double(), gate_up.double(), down.double(), chosen, weights.double())
    apart = [
        float(((f(x, gate_up, down, chosen, weights).double() - exact).norm() / exact.norm()).detach())
        for f in (op.mix, lambda *given: op.mix_by_token(*given[:4], given[4].to(dtype)))
    ]
    assert op.mix(x, gate_up, down, chosen, weights).dtype == dtype
    assert apart[0] < apart[1]


def test_autocast_chooses_the_dtype_of_both_passes():
    x, gate_up, down, chosen, weights = given(20, 4, 2, 8, 8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = op.mix(x, gate_up, down, chosen, weights)
        gradients = torch.autograd.grad(y.float().sum(), (x, gate_up, down, weights))
    assert y.dtype == torch.bfloat16
    rounded = [one.detach().bfloat16().requires_grad_() for one in (x, gate_up, down)]
    plain = op.mix(*rounded, chosen, weights)
    assert torch.equal(y, plain)
    expected = torch.autograd.grad(plain.float().sum(), (*rounded, weights))
    for one, other in zip(gradients, expected, strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other.float())


def test_no_tokens_are_no_tokens():
    x, gate_up, down, _, _ = given(3, 4, 2, 8, 8)
    empty = op.mix(x[:0], gate_up, down, torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 2, dtype=torch.float64))
    assert empty.shape == (0, 8)


def test_one_tensor_of_gradients_for_all_experts():
    """Slices by autograd would hold one of the size of all experts for each expert that is hit."""
    arguments = given(64, 32, 4, 16, 16)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        op.mix(*arguments).sum().backward()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    size = arguments[1].numel() * 8
    assert sum(event.nbytes() >= size for event in events) == 1


def test_the_load_of_each_expert():
    assert op.load(torch.tensor([[3, 1], [3, 0], [1, 3]]), 5).tolist() == [1, 2, 0, 3, 0]
