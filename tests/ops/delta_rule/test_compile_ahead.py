"""Every configuration of every kernel is compiled by one of the processes, once for each kind of call, and none is
launched. With Triton's own classes; what compiles is replaced, because that needs a GPU."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from refine.ops.delta_rule import compile_ahead, fla, fla_segments
from refine.ops.delta_rule.compile_ahead import Shape, Share

triton = pytest.importorskip("triton")
WARPS = (1, 2, 4, 8)


@pytest.fixture
def kernels():
    """A kernel with four configurations, and one with a single one."""

    def scaled(x, SIZE, BLOCK):
        pass

    def plain(x):
        pass

    configs = [triton.Config({"BLOCK": 16}, num_warps=n) for n in WARPS]
    return triton.autotune(configs, key=["SIZE"])(triton.jit(scaled)), triton.jit(plain)


@pytest.fixture
def compiled(monkeypatch):
    """(kernel, warps) of everything that was compiled."""
    found = []

    def run(self, *args, grid, warmup, **kwargs):
        assert warmup, "nothing may be launched"
        found.append((self.__name__, kwargs.get("num_warps")))

    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", run)
    return found


def _call(kernels) -> None:
    tuned, plain = kernels
    x = torch.ones(4)
    for size in (4, 4, 8):
        tuned[(1,)](x, SIZE=size)
    plain[(1,)](x)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_processes_share_all_configurations(kernels, compiled, ranks):
    for rank in range(ranks):
        share = Share(rank, ranks)
        with compile_ahead.nothing_is_launched(share):
            _call(kernels)
        assert share.met == 2 * len(WARPS) + 1
    assert sorted(compiled, key=str) == sorted([("scaled", n) for n in WARPS] * 2 + [("plain", None)], key=str)


def test_a_configuration_that_does_not_compile_is_named_and_the_others_are_compiled(kernels, monkeypatch):
    def run(self, *args, num_warps=None, **kwargs):
        if num_warps == 8:
            raise RuntimeError("out of resources")

    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", run)
    share = Share(0, 1)
    with compile_ahead.nothing_is_launched(share):
        _call(kernels)
    assert share.compiled == 2 * (len(WARPS) - 1) + 1
    assert share.failed == ["scaled: RuntimeError out of resources"] * 2


def test_triton_is_as_it_was_afterwards(kernels, compiled):
    before = triton.runtime.jit.JITFunction.run, triton.runtime.autotuner.Autotuner.run
    with pytest.raises(ZeroDivisionError), compile_ahead.nothing_is_launched(Share(0, 1)):
        raise ZeroDivisionError
    assert (triton.runtime.jit.JITFunction.run, triton.runtime.autotuner.Autotuner.run) == before


@pytest.mark.parametrize("kind", ["plain", "gated", "channel"])
def test_a_layer_calls_all_kernels_with_and_without_packing(kind, passes_made, monkeypatch):
    made = []

    def kernel(name):
        def run(q, v, initial_state, cu_seqlens=None, **more):
            made.append((name, cu_seqlens is not None, torch.is_grad_enabled()))
            return v * 1.0, initial_state * 1.0

        return run

    names = [field.name for field in dataclasses.fields(fla.Kernels)]
    monkeypatch.setattr(fla, "kernels", lambda: fla.Kernels(*map(kernel, names)))
    monkeypatch.setattr(fla, "differentiates", lambda device, width, channels: True)
    asked = []

    def together(inputs, state, steps):
        asked.append(torch.is_grad_enabled())
        return fla._apart(inputs, state, [step.cuts.cu_seqlens.diff().tolist() for step in steps.every])[:2]

    monkeypatch.setattr(fla_segments, "wanted", lambda: True)
    monkeypatch.setattr(fla_segments, "read", together)
    shape = Shape(2, 2, 16, 16, kind != "plain", kind == "channel")
    compile_ahead.compile_share([shape], Share(0, 1), torch.device("cpu"))
    end = "" if kind == "plain" else f"_{kind}"
    wanted = {(f"chunk{end}", packed, gradient) for packed in (False, True) for gradient in (False, True)}
    wanted |= {(f"recurrent{end}", packed, False) for packed in (False, True)}
    assert wanted <= set(made) and asked == [True, False], "and one call of several steps"
    assert set(passes_made) == {"convolution", "unit_length", "norm", "gated_norm", "swiglu"}
