"""The fused passes around the delta rule: their place in the models with PyTorch functions in the place of fla's, and
fla's kernels themselves against their twins under Triton's interpreter."""

import os
import subprocess
import sys

import pytest
import torch

import refine.models
from refine.ops import made_again
from refine.ops.delta_rule import fla, passes
from refine.ops.rms_norm import RMSNorm, ZeroCentredRMSNorm

SHARED = {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2, "vocab_size": 50}
MODELS = {
    "plain": {"model_type": "delta_net"},
    "plain, gated output": {"model_type": "delta_net", "use_gate": True, "qk_activation": "elu", "qk_norm": "sum"},
    "no convolution": {"model_type": "delta_net", "use_short_conv": False},
    "gated": {"model_type": "gated_deltanet", "head_dim": 16},
    "sigmoid gate": {"model_type": "gated_deltanet", "head_dim": 16, "output_gate_activation": "sigmoid"},
    "channels": {"model_type": "kda", "head_dim": 16},
    "steps": {"model_type": "gated_deltaproduct", "head_dim": 16, "num_householder": 2, "use_forget_gate": True},
}
CALLED = {
    "plain": {"convolution", "unit_length", "norm"},
    "plain, gated output": {"convolution", "gated_norm"},
    "no convolution": {"norm"},
}


def _distance(a, b):
    a, b = (torch.cat([x.detach().double().flatten() for x in each]) for each in (a, b))
    return float((a - b).norm() / b.norm())


def _step(model):
    """Packed documents after a memory, taps, and a read after these: hidden states, memories and all gradients."""
    device = model.device
    text = torch.randint(0, 50, (2, 40), generator=torch.Generator().manual_seed(1)).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        before = model.read(text[:, :7])
        reading = model.read(text, before.memory, tappable=True, lengths=[[13, 1, 22], [40]])
        tapped = reading.tap(torch.tensor([[1, 13, 36], [33, 9, 17]]))
        after = model.read(text.repeat(3, 1)[:, 3:9], tapped)
        states = [x for layer in tapped.layers for x in layer.tensors().values()]
    loss = reading.hidden.square().mean() + after.hidden.square().mean() + sum(x.square().mean() for x in states)
    assert {x.dtype for x in states} == {torch.float32}
    return [reading.hidden, after.hidden], states, torch.autograd.grad(loss, list(model.model.parameters()))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", list(MODELS))
def test_a_model_is_the_same_within_bfloat16(kind, checkpointing, calls, passes_made, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(made_again, "SMALL", 0)
    model = refine.models.from_config(SHARED | MODELS[kind])
    model.model.gradient_checkpointing = checkpointing
    expected = _step(model)
    assert not calls and not passes_made
    monkeypatch.setattr(fla, "chosen", lambda device, dtype: dtype == torch.bfloat16)
    monkeypatch.setattr(passes, "present", lambda x: x.dtype == torch.bfloat16)
    monkeypatch.setattr(fla, "EVERY", 8)
    found = _step(model)
    assert calls and set(passes_made) == {"swiglu", *CALLED.get(kind, {"convolution", "unit_length", "gated_norm"})}
    for one, other, bound in zip(found, expected, (1e-2, 1e-2, 3e-2), strict=True):
        assert _distance(one, other) < bound


@pytest.mark.parametrize("given", [None, "silu", "sigmoid"])
@pytest.mark.parametrize("kind", [RMSNorm, ZeroCentredRMSNorm])
def test_a_norm_is_its_twin_and_can_be_made_again(kind, given, passes_made):
    torch.manual_seed(0)
    norm = kind(24, 1e-5)
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    o, gate = (torch.randn(7, 3, 24).bfloat16().requires_grad_() for _ in range(2))
    leaves = [o, norm.weight, *([gate] if given else [])]
    y = passes.normed(norm, o, gate if given else None, given or "silu")
    twin = norm(o, o.dtype, gate if given else None, given or "silu")
    assert _distance([y], [twin]) < 5e-3 and y.dtype == torch.bfloat16
    assert torch.equal(y.grad_fn._forward_cls.again(y.grad_fn), y)
    d = torch.randn(y.shape).bfloat16()
    for one, other in zip(torch.autograd.grad(y, leaves, d), torch.autograd.grad(twin, leaves, d), strict=True):
        assert _distance([one], [other]) < 1e-2 and one.dtype == other.dtype


def test_float32_and_the_cpu_are_left_to_pytorch(monkeypatch):
    monkeypatch.setattr(fla, "_wish", lambda: "auto")
    assert not passes.fused(torch.device("cuda"), torch.float32)
    assert not passes.fused(torch.device("cpu"), torch.bfloat16)
    assert not passes.present(torch.ones(2)) and not passes.present(torch.ones(2).bfloat16())


INTERPRETED = """
import torch
from triton.runtime.autotuner import Autotuner
from refine.ops import short_convolution
from refine.ops.delta_rule import passes
from refine.ops.layout import Layout, Taps
from refine.ops.rms_norm import RMSNorm, unit_length
from refine.ops.swiglu import swiglu

tuned = Autotuner.run
def first_configuration(self, *args, **kwargs):  # to try them out takes a GPU
    self.configs = self.configs[:1]
    return tuned(self, *args, **kwargs)
Autotuner.run = first_configuration
torch.manual_seed(0)

def compare(name, results, leaves):
    d = [torch.randn(x.shape) for x in results[0]]
    gradients = [torch.autograd.grad([x.float() for x in each], leaves, d) for each in results]
    for one, other in zip([*results[0], *gradients[0]], [*results[1], *gradients[1]]):
        distance = float((one.float() - other.float()).norm() / other.float().norm())
        assert distance < 1e-2, (name, distance)

def normal(*shape, dtype=torch.bfloat16):
    return torch.randn(*shape).to(dtype).requires_grad_()

for lengths, after in (([37], False), ([1, 18, 2, 5], True), ([6, 6], True)):
    x, weight = normal(sum(lengths), 19), normal(19, 4, dtype=torch.float32)
    tail = normal(len(lengths), 3, 19, dtype=torch.float32) if after else None
    taps = [(g, n) for g, length in enumerate(lengths) for n in sorted({1, length})]
    for silu in (True, False):
        results = []
        for kernel in (passes.convolution, None):
            y, tails = short_convolution.read(x, weight, None, tail, Layout(lengths), silu, kernel)
            results.append([y, tails.at(Taps(*zip(*taps)))])
        assert results[0][0].dtype == torch.bfloat16
        compare(("convolution", lengths, silu), results, [x, weight, *([tail] if after else [])])
x = normal(13, 3, 24)
compare("unit length", [[f(x)] for f in (passes.unit_length, unit_length)], [x])
norm, gate = RMSNorm(24, 1e-5), normal(13, 3, 24)
torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
for activation in (None, "silu", "sigmoid"):
    given = (gate if activation else None, activation or "silu")
    results = [[passes.normed(norm, x, *given)], [norm(x, x.dtype, *given)]]
    compare(("norm", activation), results, [x, norm.weight, *([gate] if activation else [])])
passes.present = lambda x: use
gate, up, results = normal(13, 40), normal(13, 40), []
for use in (True, False):
    y = swiglu(gate, up)
    results.append([y, torch.autograd.grad(y, gate, torch.ones_like(y), retain_graph=True)[0]])
    with torch.no_grad():
        assert torch.equal(y.grad_fn._forward_cls.again(y.grad_fn), y)
    d = torch.randn(13, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    results[-1] += torch.autograd.grad(y, [gate, up], d)
for one, other in zip(*results):
    assert float((one.float() - other.float()).norm() / other.float().norm()) < 1e-2
print("the same")
"""


@pytest.mark.slow
@pytest.mark.requires_fla
def test_fla_s_kernels_are_the_twins_under_triton_s_interpreter():
    """Odd sizes, packed documents, a tail carried in, taps; without a GPU."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-c", INTERPRETED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=580)
    assert done.stdout.strip() == "the same", done.stderr[-2000:]


@pytest.mark.requires_cuda
@pytest.mark.requires_fla
@pytest.mark.parametrize("kind", list(MODELS))
def test_a_model_on_a_gpu_is_that_of_pytorch(kind, monkeypatch):
    """Kernels and passes against PyTorch on the same GPU, under autocast."""
    torch.manual_seed(0)
    wide = {"hidden_size": 128} | ({"head_dim": 128} if "head_dim" in MODELS[kind] else {"num_heads": 1})
    model = refine.models.from_config(SHARED | MODELS[kind] | wide).cuda()
    results = []
    for wish in ("auto", "torch"):
        monkeypatch.setenv("REFINE_KERNELS", wish)
        results.append(_step(model))
    for one, other, bound in zip(*results, (2e-2, 2e-2, 5e-2), strict=True):
        assert _distance(one, other) < bound
