"""The short convolution over documents is its token-by-token twin, and torch's own convolution."""

import pytest
import torch

from refine.ops import row_groups, short_convolution
from refine.ops.layout import Ends, Layout, Taps


@pytest.mark.parametrize("silu", [False, True], ids=["bare", "silu"])
@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("with_tail", [True, False], ids=["after a tail", "fresh"])
@pytest.mark.parametrize("lengths", [[1], [2], [3], [4, 4], [1, 7, 3], [65]], ids=str)
def test_documents_are_the_twin(lengths, with_tail, width, silu, monkeypatch):
    monkeypatch.setattr(row_groups, "CACHED_NUMBERS", 30)  # several blocks
    generator = torch.Generator().manual_seed(3)
    channels = 5

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    x, weight, bias = normal(sum(lengths), channels), normal(channels, width), normal(channels)
    tail = normal(len(lengths), width - 1, channels)
    taps = [(g, n) for g, length in enumerate(lengths) for n in {1, length}]
    y, tails = short_convolution.read(x, weight, bias, tail if with_tail else None, Layout(lengths), silu)
    tapped = tails.at(Taps([g for g, _ in taps], [n for _, n in taps]))
    outputs, after, at = [], [], 0
    for g, n in enumerate(lengths):
        o, t = short_convolution.token_by_token(
            x[None, at : at + n], weight, bias, tail[g : g + 1] if with_tail else None
        )
        outputs.append(o[0])
        after.append(t[0])
        at += n
    expected = torch.nn.functional.silu(torch.cat(outputs)) if silu else torch.cat(outputs)
    expected_tails = torch.stack([after[g][n - 1] for g, n in taps])
    assert torch.allclose(y, expected, rtol=0, atol=1e-12) and torch.equal(tapped, expected_tails)
    leaves = [x, weight, bias] + ([tail] if with_tail and width > 1 else [])
    weights = torch.randn(y.shape, dtype=torch.float64), torch.randn(tapped.shape, dtype=torch.float64)
    ours = torch.autograd.grad((y * weights[0]).sum() + (tapped * weights[1]).sum(), leaves)
    twins = torch.autograd.grad((expected * weights[0]).sum() + (expected_tails * weights[1]).sum(), leaves)
    assert all(torch.allclose(one, other, rtol=0, atol=1e-11) for one, other in zip(ours, twins, strict=True))


def test_the_twin_is_torchs_causal_convolution():
    x, weight = torch.randn(2, 9, 5), torch.randn(5, 4)
    expected = torch.nn.functional.conv1d(x.transpose(1, 2), weight[:, None], padding=3, groups=5)[..., :9].transpose(
        1, 2
    )
    assert torch.allclose(short_convolution.token_by_token(x, weight)[0], expected, atol=1e-5)


@pytest.mark.parametrize("silu", [False, True], ids=["bare", "silu"])
@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
def test_a_step_of_decoding_is_the_twin(width, silu, with_bias):
    x, weight, tail = torch.randn(3, 5).double(), torch.randn(5, width).double(), torch.randn(3, width - 1, 5).double()
    bias = torch.randn(5).double() if with_bias else None
    layout, taps = Layout([1, 1, 1]), Taps([2, 0, 0], [1, 1, 1])
    with torch.no_grad():
        y, tails = short_convolution.read(x, weight, bias, tail, layout, silu)
    assert isinstance(tails, Ends)
    expected, after = short_convolution.token_by_token(x[:, None], weight, bias, tail)
    expected = torch.nn.functional.silu(expected) if silu else expected
    assert torch.allclose(y, expected[:, 0], rtol=0, atol=1e-12)
    assert torch.equal(tails.at(taps), after[[2, 0, 0], 0]) and torch.equal(tails.at(Taps.ends(layout)), after[:, 0])


@pytest.mark.parametrize("with_tail", [True, False], ids=["after a tail", "fresh"])
@pytest.mark.parametrize("lengths", [[9], [4, 4], [1, 7, 3]], ids=str)
def test_16_bit_inputs_are_kept_as_they_are_and_read_in_float32(lengths, with_tail):
    """The values are those of the same inputs in float32, to the last bit; gradients are rounded once."""
    x, weight = torch.randn(sum(lengths), 6).bfloat16(), torch.randn(6, 4, requires_grad=True)
    tail = torch.randn(len(lengths), 3, 6).bfloat16().float() if with_tail else None
    taps, kept, results = Taps(list(range(len(lengths))), lengths), [], []

    def pack(saved):
        kept.append(saved)
        return saved

    for given in (x.requires_grad_(), x.detach().float().requires_grad_()):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            y, tails = short_convolution.read(given, weight, None, tail, Layout(lengths), True)
            tapped = tails.at(taps)
        longest = max(kept, key=torch.numel)
        assert longest.dtype == given.dtype and y.dtype == tapped.dtype == torch.float32
        loss = y.square().sum() + tapped.square().sum()
        results.append([y, tapped, *torch.autograd.grad(loss, [given, weight])])
    for one, other in zip(results[0], results[1], strict=True):
        assert torch.equal(one, other.to(one.dtype)) or one.dtype == torch.bfloat16
    assert torch.allclose(results[0][2].float(), results[1][2], rtol=2**-6, atol=1e-3)
