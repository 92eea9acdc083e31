"""The adapter for flash-linear-attention's kernels: its logic with naive functions in the kernels' place, and, where
there is a GPU, the kernels themselves against the twin."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import refine.models
from refine.ops.delta_rule import fla
from refine.ops.delta_rule import rule as delta_rule
from refine.ops.layout import Layout, Taps
from refine.ops.rms_norm import unit_length
from tests.fixtures.pretended_device import DEVICE, Watch, elsewhere


def _inputs(lengths, gated, value_heads=2, dtype=torch.float64, device="cpu"):
    generator = torch.Generator().manual_seed(sum(lengths))

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    total = sum(lengths)
    decay = (total, value_heads, 16) if gated == "channel" else (total, value_heads)
    inputs = [
        unit_length(normal(total, 2, 16)),
        unit_length(normal(total, 2, 16)),
        normal(total, value_heads, 16),
        torch.rand(total, value_heads, generator=generator, dtype=torch.float64),
        -torch.rand(*decay, generator=generator, dtype=torch.float64) if gated else None,
        normal(len(lengths), value_heads, 16, 16),
    ]
    dtypes = [dtype] * 3 + [torch.promote_types(dtype, torch.float32)] * 3
    return [None if x is None else x.to(device, d).requires_grad_() for x, d in zip(inputs, dtypes, strict=True)]


def _distance(a, b):
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm().clamp(min=1e-2))  # what should be 0 may be rounding


def _compared(inputs, lengths, taps, every, bound):
    """Output, tapped states and all gradients of the adapter against PyTorch's path in at least float32."""
    wide = [None if x is None else x.detach().to(inputs[3].dtype).requires_grad_() for x in inputs]
    o, states = fla.read(*inputs, Layout(lengths, device=inputs[0].device), every=every)
    tapped = states.at(Taps(*zip(*taps, strict=True), device=inputs[0].device))
    expected, twin = delta_rule.read(*wide, Layout(lengths, device=inputs[0].device))
    expected_states = twin.at(Taps(*zip(*taps, strict=True), device=inputs[0].device))
    assert _distance(o, expected) < bound and _distance(tapped, expected_states) < bound
    weights = torch.randn_like(expected), torch.randn_like(expected_states)
    leaves = [[x for x in each if x is not None] for each in (inputs, wide)]
    ours = torch.autograd.grad((o.to(expected.dtype) * weights[0]).sum() + (tapped * weights[1]).sum(), leaves[0])
    twins = torch.autograd.grad((expected * weights[0]).sum() + (expected_states * weights[1]).sum(), leaves[1])
    for one, other in zip(ours, twins, strict=True):
        assert _distance(one, other) < bound


# fields of each kind of model that the kernels read, for heads of a width
OWN = {
    "delta_net": lambda width: {},
    "gated_deltanet": lambda width: {"head_dim": width},
    "kda": lambda width: {"head_dim": width},
    "gated_deltaproduct": lambda width: {"head_dim": width, "num_householder": 3, "use_forget_gate": True},
}
CASES = [([7], 3), ([1], 4), ([8, 8], 4), ([5, 13, 1, 8], 4), ([3, 9], 100)]


@pytest.mark.parametrize("value_heads", [2, 4])
@pytest.mark.parametrize("gated", [False, True, "channel"], ids=["plain", "gated", "channel"])
@pytest.mark.parametrize("fresh", [False, True], ids=["from a state", "fresh"])
@pytest.mark.parametrize(("lengths", "every"), CASES, ids=str)
def test_reading_in_segments_and_tapping_between_them_is_exact(calls, lengths, every, fresh, gated, value_heads):
    taps = [(g, n) for g, length in enumerate(lengths) for n in sorted({1, length, (length + 1) // 2}, reverse=True)]
    inputs = _inputs(lengths, gated, value_heads)
    _compared([*inputs[:5], None] if fresh else inputs, lengths, taps, every, 1e-10)


def test_segments_that_follow_each_other_are_read_in_one_call(together):
    lengths = [5, 13, 1, 8]
    taps = [(g, n) for g, length in enumerate(lengths) for n in (length, 1)]
    _compared(_inputs(lengths, True, 4), lengths, taps, 4, 1e-10)
    assert together == [27]
    fla.read(*_inputs([9, 3], True), Layout([9, 3]), every=9)
    assert together == [27], "one segment a document: a call as any other"


def test_a_step_of_decoding_reads_its_token_once(calls):
    lengths = [1, 1, 1]
    inputs, layout = _inputs(lengths, True), Layout(lengths)
    with torch.no_grad():
        o, states = fla.read(*inputs, layout)
        after = states.at(Taps.ends(layout))
        expected, twin = delta_rule.read(*inputs, layout)
    assert calls == [("recurrent_gated", 3)]
    assert torch.allclose(after, twin.at(Taps.ends(layout))) and torch.allclose(o, expected)


def test_documents_of_unequal_length_are_named_by_the_same_tensors_in_every_layer(calls, monkeypatch):
    """fla keeps what it derives from them by identity, and counts chunks on the host."""
    given = []
    original = fla.kernels().chunk
    stand_in = lambda **arguments: given.append(arguments) or original(**arguments)  # noqa: E731
    monkeypatch.setattr(fla, "kernels", lambda: SimpleNamespace(chunk=stand_in))
    for _ in range(2):
        fla.read(*_inputs([70, 3], False), Layout([70, 3]))
    assert len({id(one["cu_seqlens"]) for one in given}) == len({id(one["cu_seqlens_cpu"]) for one in given}) == 1
    assert given[0]["cu_seqlens"].tolist() == [0, 70, 73] and len(given) == 2


def test_a_second_layer_moves_nothing_to_the_device_and_waits_for_nothing(calls, monkeypatch):
    def kernel(v, initial_state, **more):
        return v * 1.0, initial_state * 1.0

    monkeypatch.setattr(fla, "kernels", lambda: SimpleNamespace(chunk_gated=kernel, recurrent_gated=kernel))
    lengths = [70, 3, 600]
    with Watch() as watch, torch.no_grad():
        inputs = [elsewhere(x.detach()) for x in _inputs(lengths, True)]
        layout, taps = Layout(lengths, device=DEVICE), Taps([0, 2, 2], [5, 599, 7], DEVICE)
        for layer in range(2):
            if layer:
                assert watch.copies
                watch.copies.clear()
            _, states = fla.read(*inputs, layout)
            states.at(taps)
    assert not watch.copies and not watch.synchronisations, (watch.copies, watch.synchronisations)


def test_a_tap_reads_again_no_more_than_a_segment(calls):
    lengths = [40, 17]
    _, states = fla.read(*_inputs(lengths, False), Layout(lengths), every=8)
    read = sum(tokens for _, tokens in calls)
    assert read == 57
    states.at(Taps([0, 0, 1], [40, 9, 7]))
    assert sum(tokens for _, tokens in calls) - read == 8 + 1 + 7


@pytest.mark.parametrize(
    ("gated", "tokens", "gradient", "expected"),
    [
        (False, 64, True, "recurrent"),
        (False, 65, True, "chunk"),
        (True, 5, False, "recurrent_gated"),
        (True, 5, True, "chunk_gated"),
        (True, 65, False, "chunk_gated"),
        ("channel", 5, False, "recurrent_channel"),
        ("channel", 5, True, "chunk_channel"),
    ],
)
def test_short_reads_use_the_recurrent_kernel_where_it_has_a_gradient(calls, gated, tokens, gradient, expected):
    with torch.set_grad_enabled(gradient):
        fla.read(*_inputs([tokens], gated), Layout([tokens]))
    assert [name for name, _ in calls] == [expected]


@pytest.mark.parametrize("fresh", [False, True], ids=["from a state", "fresh"])
@pytest.mark.parametrize("tokens", [5, 64])
def test_a_short_read_from_a_memory_without_gradient_has_gradients(calls, tokens, fresh):
    """fla's recurrent backward pass fails without a differentiable initial state (0.6.0 and before)."""
    results = []
    for read in (fla.read, delta_rule.read):
        *inputs, state = _inputs([tokens], False)
        o, states = read(*inputs, None if fresh else state.detach(), Layout([tokens]))
        loss = o.square().sum() + states.at(Taps([0], [tokens])).square().sum()
        results.append(torch.autograd.grad(loss, [x for x in inputs if x is not None]))
    assert calls[0][0] == "recurrent"
    assert all(_distance(one, other) < 1e-10 for one, other in zip(*results, strict=True))


INTERPRETED = """
import torch
from refine.ops.delta_rule import fla, rule
from refine.ops.layout import Layout
torch.manual_seed(0)
q, k, v = (torch.nn.functional.normalize(torch.randn(7, 2, 16), dim=-1).half().requires_grad_() for _ in range(3))
beta, state = torch.rand(7, 2).requires_grad_(), torch.randn(1, 2, 16, 16)
weights = torch.randn(7, 2, 16)
for given in (None, state, state.clone().requires_grad_()):
    gradients = []
    for read, wide in ((fla.read, False), (rule.read, True)):
        q_, k_, v_ = (x.float() if wide else x for x in (q, k, v))
        o, _ = read(q_, k_, v_, beta, None, given, Layout([7]))
        gradients.append(torch.autograd.grad((o.float() * weights).sum(), [q, k, v, beta]))
    for one, other in zip(*gradients):
        distance = float((one.float() - other.float()).norm() / other.float().norm())
        assert distance < 1e-2, distance
print("the same")
"""


@pytest.mark.slow
@pytest.mark.requires_fla
def test_the_recurrent_kernels_gradients_are_the_twin_s_under_triton_s_interpreter():
    """Without a GPU. A memory without gradient is where fla's backward pass fails by itself."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-c", INTERPRETED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=580)
    assert done.stdout.strip() == "the same", done.stderr[-2000:]


@pytest.mark.parametrize("kind", list(OWN))
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_whole_model_reads_and_taps_the_same_through_the_adapter(calls, monkeypatch, kind, checkpointing):
    config = {"model_type": kind, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2, "vocab_size": 50}
    model = refine.models.from_config(config | OWN[kind](16)).double()
    model.model.gradient_checkpointing = checkpointing
    text, positions = torch.randint(0, 50, (2, 40)), torch.tensor([[1, 8, 40], [33, 9, 17]])
    results = []
    for through in (False, True):
        monkeypatch.setattr(fla, "chosen", lambda device, dtype, through=through: through)
        monkeypatch.setattr(fla, "EVERY", 8)
        reading = model.read(text, tappable=True)
        tapped = reading.tap(positions)
        loss = reading.hidden.square().sum() + sum(t.sum() for layer in tapped.layers for t in layer.tensors().values())
        results.append([reading.hidden, *torch.autograd.grad(loss, list(model.model.parameters()))])
    assert calls
    assert all(_distance(one, other) < 1e-10 for one, other in zip(*results, strict=True))


def _skip_where_no_gradient_is_trusted(gated):
    if gated and not fla.differentiates(torch.device("cuda"), 16, gated == "channel"):
        pytest.skip("this version of triton computes wrong gradients on this GPU: PyTorch computes them")


@pytest.mark.requires_cuda
@pytest.mark.requires_fla
@pytest.mark.parametrize("value_heads", [2, 4])
@pytest.mark.parametrize("gated", [False, True, "channel"], ids=["plain", "gated", "channel"])
@pytest.mark.parametrize("lengths", [[5], [64], [65, 1, 700], [1024, 1024]], ids=str)
def test_the_kernels_are_the_twin_within_bfloat16(lengths, gated, value_heads):
    if not gated and value_heads == 4:
        pytest.skip("the plain kernels have no grouped value heads")
    _skip_where_no_gradient_is_trusted(gated)
    taps = [(g, n) for g, length in enumerate(lengths) for n in sorted({1, length, (length + 1) // 2})]
    inputs = _inputs(lengths, gated, value_heads, torch.bfloat16, "cuda")
    _compared(inputs, lengths, taps, 512, 2e-2)


@pytest.mark.requires_cuda
@pytest.mark.requires_fla
@pytest.mark.parametrize("lengths", [[5], [65, 1, 700]], ids=str)
def test_the_kernels_stay_right_where_a_channel_forgets_all_at_once(lengths):
    _skip_where_no_gradient_is_trusted("channel")
    inputs = _inputs(lengths, "channel", 2, torch.bfloat16, "cuda")
    with torch.no_grad():
        inputs[4][torch.rand(inputs[4].shape, device="cuda") < 0.1] = -60.0
    _compared(inputs, lengths, [(g, n) for g, n in enumerate(lengths)], 512, 2e-2)


@pytest.mark.requires_cuda
@pytest.mark.requires_fla
def test_the_kernels_let_no_later_token_change_an_earlier_one():
    """fla-org/flash-linear-attention#1240, #1242."""
    _skip_where_no_gradient_is_trusted("channel")
    results = []
    for change in (1.0, 0.3):
        inputs = _inputs([200], "channel", 2, torch.bfloat16, "cuda")
        with torch.no_grad():
            for x in inputs[:5]:
                x[100:] *= change
        o, _ = fla.read(*inputs, Layout([200], device="cuda"))
        gradients = torch.autograd.grad(o[:100].float().sum(), inputs[:5])
        results.append([o[:100], *(x[:100] for x in gradients)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.requires_cuda
@pytest.mark.requires_fla
@pytest.mark.parametrize("kind", list(OWN))
def test_a_whole_model_on_a_gpu_reads_as_on_the_cpu(kind, monkeypatch):
    config = {"model_type": kind, "hidden_size": 128, "num_hidden_layers": 2, "num_heads": 2, "vocab_size": 50}
    torch.manual_seed(0)
    model = refine.models.from_config(config | OWN[kind](64))
    text, positions = torch.randint(0, 50, (2, 700)), torch.tensor([[1, 513, 700], [640, 512, 65]])
    expected = model.read(text, taps=positions)
    gpu = model.to("cuda", torch.bfloat16).read(text.cuda(), taps=positions)
    assert _distance(gpu.hidden.cpu(), expected.hidden) < 3e-2
    for one, other in zip(gpu.tapped.layers, expected.tapped.layers, strict=True):
        assert _distance(one["state"].cpu(), other["state"]) < 3e-2
