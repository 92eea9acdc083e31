"""The chunkwise delta rule (rule.py, chunked.py) is its token-by-token twin: output, states anywhere, gradients."""

import pytest
import torch

from refine.ops.delta_rule import rule as delta_rule
from refine.ops.layout import Ends, Layout, Taps
from refine.ops.rms_norm import unit_length

BOUNDS = {torch.float64: 1e-11, torch.float32: 1e-5}
LENGTHS = [[1], [2], [3], [5, 5, 5], [63], [64], [65], [128, 128], [1, 200, 64, 3, 65], [127, 7]]


def _inputs(lengths, dtype, gated, beta_up_to=1.0):
    generator = torch.Generator().manual_seed(sum(lengths))
    heads, key, value, total = 2, 8, 6, sum(lengths)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    inputs = {
        "q": unit_length(normal(total, heads, key)),
        "k": unit_length(normal(total, heads, key)),
        "v": normal(total, heads, value),
        "beta": beta_up_to * torch.rand(total, heads, generator=generator, dtype=dtype),
        "log_decay": -torch.rand(total, heads, generator=generator, dtype=dtype) if gated else None,
        "state": normal(len(lengths), heads, key, value),
    }
    return {name: None if x is None else x.detach().requires_grad_() for name, x in inputs.items()}


def _by_twin(inputs, lengths, taps, with_state):
    outputs, states, at = [], {}, 0
    for g, n in enumerate(lengths):
        part = {name: None if x is None else x[None, at : at + n] for name, x in inputs.items() if name != "state"}
        o, after = delta_rule.token_by_token(**part, state=inputs["state"][g : g + 1] if with_state else None)
        outputs.append(o[0])
        states[g] = after[0]
        at += n
    return torch.cat(outputs), torch.stack([states[g][n - 1] for g, n in taps])


def _distance(a, b):
    a, b = a.detach(), b.detach()
    return float((a - b).norm() / b.norm().clamp(min=1e-2))  # what should be 0 may be rounding


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("with_state", [True, False], ids=["from a state", "fresh"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_chunks_are_the_twin(lengths, with_state, gated, dtype):
    inputs = _inputs(lengths, dtype, gated, beta_up_to=2.0)
    taps = [(g, n) for g, length in enumerate(lengths) for n in {1, (length + 1) // 2, length}] * 2
    expected, expected_states = _by_twin(inputs, lengths, taps, with_state)
    o, states = delta_rule.read(**{**inputs, "state": inputs["state"] if with_state else None}, layout=Layout(lengths))
    tapped = states.at(Taps([g for g, _ in taps], [n for _, n in taps]))
    assert _distance(o, expected) < BOUNDS[dtype] and _distance(tapped, expected_states) < BOUNDS[dtype]
    weights = torch.randn(o.shape, dtype=dtype), torch.randn(tapped.shape, dtype=dtype)
    leaves = [x for name, x in inputs.items() if x is not None and (with_state or name != "state")]
    ours = torch.autograd.grad((o * weights[0]).sum() + (tapped * weights[1]).sum(), leaves)
    twins = torch.autograd.grad((expected * weights[0]).sum() + (expected_states * weights[1]).sum(), leaves)
    for one, other in zip(ours, twins, strict=True):
        assert _distance(one, other) < BOUNDS[dtype]


def test_gradients_that_come_through_states_alone_or_outputs_alone_are_right():
    lengths = [70]
    inputs = _inputs(lengths, torch.float64, True)
    leaves = list(inputs.values())
    expected, expected_states = _by_twin(inputs, lengths, [(0, 66)], True)
    o, states = delta_rule.read(**inputs, layout=Layout(lengths))
    tapped = states.at(Taps([0], [66]))
    for ours, twin in ((o, expected), (tapped, expected_states)):
        for one, other in zip(
            torch.autograd.grad(ours.square().sum(), leaves, retain_graph=True, allow_unused=True),
            torch.autograd.grad(twin.square().sum(), leaves, retain_graph=True, allow_unused=True),
            strict=True,
        ):
            one = torch.zeros_like(other) if one is None and other is not None else one
            other = torch.zeros_like(one) if other is None and one is not None else other
            assert _distance(one, other) < 1e-11


def test_strong_decay_and_repeated_keys_stay_finite_and_right():
    lengths = [130]
    inputs = _inputs(lengths, torch.float32, True, beta_up_to=1.0)
    inputs["log_decay"] = (30 * inputs["log_decay"].detach()).requires_grad_()
    inputs["k"] = inputs["k"].detach()[:1].expand(130, -1, -1).clone().requires_grad_()
    expected, _ = _by_twin(inputs, lengths, [(0, 1)], True)
    o, _ = delta_rule.read(**inputs, layout=Layout(lengths))
    assert _distance(o, expected) < 1e-5
    o.sum().backward()
    assert all(x.grad.isfinite().all() for x in inputs.values())


def test_one_document_does_not_see_what_is_wrong_with_another():
    inputs = _inputs([65, 70], torch.float32, False)
    clean, _ = delta_rule.read(**inputs, layout=Layout([65, 70]))
    with torch.no_grad():
        inputs["v"][70] = torch.nan
    dirty, _ = delta_rule.read(**inputs, layout=Layout([65, 70]))
    assert torch.equal(dirty[:65], clean[:65])


@pytest.mark.requires_fla
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_the_twin_is_flash_linear_attentions_own(gated):
    from fla.ops.delta_rule.naive import delta_rule_recurrence
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule

    inputs = _inputs([40], torch.float32, gated)
    q, k, v, beta = (inputs[name].detach()[None] for name in ("q", "k", "v", "beta"))
    state = inputs["state"].detach()
    if gated:
        o, last = naive_recurrent_gated_delta_rule(q, k, v, beta, inputs["log_decay"].detach()[None], None, state, True)
    else:
        o, last = delta_rule_recurrence(*(x.transpose(1, 2) for x in (q, k, v, beta)), initial_state=state)
        o = o.transpose(1, 2)
    decay = inputs["log_decay"].detach()[None] if gated else None
    ours, states = delta_rule.token_by_token(q, k, v, beta, decay, state)
    assert _distance(ours, o) < 1e-6 and _distance(states[:, -1], last) < 1e-6


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_step_of_decoding_is_the_twin(groups, gated, dtype):
    lengths = [1, 1, 1, 1]
    inputs = _inputs(lengths, dtype, gated, beta_up_to=2.0)
    inputs |= {name: inputs[name].repeat_interleave(groups, 1) for name in ("v", "beta", "state")}
    inputs |= {"log_decay": inputs["log_decay"].repeat_interleave(groups, 1)} if gated else {}
    kept = inputs["state"].clone()
    with torch.no_grad():
        o, states = delta_rule.read(**inputs, layout=Layout(lengths))
    assert isinstance(states, Ends)
    wide = inputs | {name: inputs[name].repeat_interleave(groups, 1) for name in ("q", "k")}
    taps = [(3, 1), (0, 1), (0, 1)]
    expected, expected_states = _by_twin(wide, lengths, taps, True)
    tapped = states.at(Taps([g for g, _ in taps], [n for _, n in taps]))
    assert _distance(o, expected) < BOUNDS[dtype] and _distance(tapped, expected_states) < BOUNDS[dtype]
    assert torch.equal(inputs["state"], kept)  # other rows may share it
