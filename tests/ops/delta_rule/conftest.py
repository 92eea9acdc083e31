"""Naive functions in the place of flash-linear-attention's kernels."""

import dataclasses

import pytest
import torch

from refine.ops import rms_norm
from refine.ops.delta_rule import fla, fla_segments, passes
from refine.ops.delta_rule import rule as delta_rule


def _naive(q, k, v, beta, g=None, initial_state=None, output_final_state=False, cu_seqlens=None, cu_seqlens_cpu=None):
    """What a kernel computes, by the token-by-token twin; kernels' argument names and shapes."""
    assert output_final_state and q.is_contiguous() and v.is_contiguous()
    given, wide = v.dtype, initial_state.dtype
    q, k, v, beta = (x.to(wide) for x in (q, k, v, beta))
    repeat = v.shape[2] // q.shape[2]
    q, k = (x.repeat_interleave(repeat, 2) for x in (q, k))
    if cu_seqlens is None:
        o, states = delta_rule.token_by_token(q, k, v, beta, g, initial_state)
        return o.to(given), states[:, -1]
    assert q.shape[0] == 1 and (cu_seqlens_cpu is None or torch.equal(cu_seqlens_cpu, cu_seqlens.cpu()))
    outputs, last = [], []
    for row, (start, end) in enumerate(zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True)):
        part = [None if x is None else x[:, start:end] for x in (q, k, v, beta, g)]
        o, states = delta_rule.token_by_token(*part, None if initial_state is None else initial_state[row : row + 1])
        outputs.append(o)
        last.append(states[:, -1])
    return torch.cat(outputs, 1).to(given), torch.cat(last)


@pytest.fixture
def calls(monkeypatch):
    """Puts naive functions in the kernels' place; a list of (kernel, tokens) of every call."""
    made = []

    def kernel(name):
        def run(**arguments):
            made.append((name, arguments["q"].shape[0] * arguments["q"].shape[1]))
            differentiable = torch.is_grad_enabled() and arguments["k"].requires_grad
            assert name[:10] != "recurrent_" or not differentiable, "this kernel has no backward pass"
            if name == "recurrent" and differentiable:
                assert arguments["initial_state"].requires_grad, "its backward pass writes the state's gradient"
            return _naive(**arguments)

        return run

    names = [field.name for field in dataclasses.fields(fla.Kernels)]
    stand_ins = fla.Kernels(**{name: kernel(name) for name in names})
    monkeypatch.setattr(fla, "kernels", lambda: stand_ins)
    monkeypatch.setattr(fla_segments, "wanted", lambda: False)  # a call for each step of segments: the kernels alone
    return made


def _convolution(x, weight, activation):
    padded = torch.nn.functional.pad(x.float().mT, (weight.shape[1] - 1, 0))
    y = torch.nn.functional.conv1d(padded, weight[:, None], groups=len(weight)).mT
    return (torch.nn.functional.silu(y) if activation == "silu" else y).to(x.dtype), None


def _norm(x, weight, bias, eps):
    return torch.nn.functional.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)


def _gated_norm(x, gate, weight, bias, activation, eps):
    act = torch.nn.functional.silu if activation == "swish" else torch.sigmoid
    return (torch.nn.functional.rms_norm(x.float(), weight.shape, weight, eps) * act(gate.float())).to(x.dtype)


def _swiglu(gate, up):
    return (torch.nn.functional.silu(gate.float()) * up.float()).to(gate.dtype)


@pytest.fixture
def passes_made(monkeypatch):
    """PyTorch in the place of fla's fused passes; a list of the names of those that were called."""
    made = []

    def noted(name, function):
        def run(x, *arguments, **more):
            assert x.element_size() == 2 and x.is_contiguous()
            made.append(name)
            return function(x, *arguments, **more)

        return run

    functions = {"convolution": _convolution, "unit_length": rms_norm.unit_length}
    functions |= {"norm": _norm, "gated_norm": _gated_norm, "swiglu": _swiglu}
    fused = passes.Fused(**{name: noted(name, function) for name, function in functions.items()})
    monkeypatch.setattr(passes, "functions", lambda: fused)
    return made


@pytest.fixture
def together(calls, monkeypatch):
    """As `calls`, but segments are asked for in one call, which the naive functions answer; a list of its tokens."""
    asked = []

    def read(inputs, state, steps):
        asked.append(steps.every[-1].tokens.stop)
        lengths = [step.cuts.cu_seqlens.diff().tolist() for step in steps.every]
        assert [sum(n) for n in lengths] == [step.tokens.stop - step.tokens.start for step in steps.every]
        return fla._apart(inputs, state, lengths)[:2]

    monkeypatch.setattr(fla_segments, "wanted", lambda: True)
    monkeypatch.setattr(fla_segments, "read", read)
    return asked
