"""Initial values with which a new model writes "after these tokens came this" (the setting `model.shifted_keys`)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from refine.errors import SettingError
from refine.models.delta.mixer import ShortConvolution
from refine.models.lact.mixer import BASE_RATE, Lact

BACK = (1, 2)  # tokens that the first layer's heads look back
SHARPNESS = 6.0  # of their queries and keys: the token looked for gets nearly all weight
TURNING = 8  # pairs of a head that turn fast enough to tell neighbours apart
GATE_GAIN = 24.0  # of w0 and w2: features of a unit key then bend, which keeps keys apart
WRITE_RATE = 3.0  # of w1; w0 and w2 begin at the published rate, which leaves features as they are
READ_SCALE = 1.0  # before the SiLU, of what is read


@torch.no_grad()
def shift_keys(model: nn.Module) -> None:
    """Set a new model's initial values so that a key is of the tokens before, and its query of the last tokens.

    DeltaNet and Gated DeltaNet by their short convolutions. LaCT has none: heads
    of its first layer look one and two tokens back, and fast keys of the later layers read what those wrote.
    Raises SettingError: a model that can do neither.
    """
    mixers = [module for module in model.modules() if isinstance(module, Lact)]
    if mixers:
        _shift_fast_keys(mixers)
    else:
        _shift_convolutions(model)


def _shift_fast_keys(mixers: list[Lact]) -> None:
    """The first mixer brings the tokens before; the later ones write and read by them, with w1 alone.

    A first-layer head's query and key are constant (biases), turned so that their product is largest at its distance.
    What it copies are some directions of the token, written into others: the fast keys of later layers read these,
    their queries what the same directions hold one token later.
    """
    first, *later = mixers
    hidden, width = first.qkv.in_features, first.qkv.in_features // first.heads
    if first.qkv.bias is None or not first.nope or hasattr(first, "q_norm") or len(BACK) > first.heads:
        needs = f"model.config with qkv_bias, ttt_nope, no attn_qk_norm and at least {len(BACK)} num_attn_heads"
        raise SettingError(f"model.shifted_keys: a LaCT's keys shift only by {needs}")
    read, written = (_directions(hidden, first.qkv.weight) for _ in range(2))
    places = [written[i * width : (i + 1) * width] for i in range(len(BACK))]
    for head, distance in enumerate(BACK):
        _look_back(first, head, distance)
        rows = slice(head * width, (head + 1) * width)
        first.qkv.weight[2 * hidden :][rows] = read[:width] * first.qkv.weight.std() * math.sqrt(hidden)
        first.o_proj.weight[:, rows] = places[head].T
    if hasattr(first, "ttt_scale_proj"):
        first.ttt_scale_proj.weight.zero_()  # the fast branch shares these channels: it begins silent
    seen = [read[:width], *places]  # the token itself, the one before, the one before that
    for mixer in later:
        for head in range(mixer.heads):
            rows, which = slice(head * width, (head + 1) * width), head % len(BACK)
            mixer.qkv.weight[:hidden][rows] = seen[which]
            mixer.qkv.weight[hidden : 2 * hidden][rows] = seen[which + 1]
        if hasattr(mixer, "ttt_scale_proj"):
            mixer.ttt_scale_proj.weight.mul_(0.1)
            mixer.ttt_scale_proj.bias.fill_(READ_SCALE)
    for mixer in mixers:
        mixer.lr_proj.weight.mul_(0.1)
        mixer.lr_proj.bias.view(-1, 3)[:, 1] = _inverse_softplus(WRITE_RATE) - _inverse_softplus(BASE_RATE)
        for name, weight in mixer.named_parameters():
            if name.split(".")[0] in ("w0", "w2"):  # of low rank: two factors
                weight.mul_(GATE_GAIN if "." not in name else math.sqrt(GATE_GAIN))


def _look_back(mixer: Lact, head: int, distance: int) -> None:
    """Let attention `head` look `distance` tokens back, whatever the tokens are."""
    hidden = mixer.qkv.in_features
    width = hidden // mixer.heads
    pairs = torch.arange(width // 2, device=mixer.qkv.weight.device)
    angles = distance * mixer.theta ** (-2.0 * pairs / width)
    size = SHARPNESS * (pairs < TURNING)
    queries, keys = (slice(start + head * width, start + (head + 1) * width) for start in (0, hidden))
    mixer.qkv.weight[queries], mixer.qkv.weight[keys] = 0, 0
    mixer.qkv.bias[queries] = torch.cat([size * angles.cos(), -size * angles.sin()])
    mixer.qkv.bias[keys] = torch.cat([size, torch.zeros_like(size)])


def _directions(count: int, like: Tensor) -> Tensor:
    """`count` orthonormal rows."""
    return torch.linalg.qr(torch.randn(count, count, device=like.device))[0].to(like.dtype)


def _inverse_softplus(y: float) -> float:
    return math.log(math.expm1(y))


@torch.no_grad()
def _shift_convolutions(model: nn.Module) -> None:
    """Set a new model's short convolutions so that a key is of the tokens before, and its query of the last tokens.

    Of a convolution of width W, W - 1 shares of the channels are shifted by 0 to W - 2 tokens in q, and by one more in
    k; v is of the token itself. What is written then is "after those came this", and what is read "what came after
    these?": recall of n-grams, which a model of random convolutions has to find first (the shift of H3, arXiv
    2212.14052, section 3.2, for n tokens). Raises SettingError: a model without short convolutions.
    """
    mixers = [module for module in model.modules() if isinstance(getattr(module, "k_conv1d", None), ShortConvolution)]
    if not mixers:
        raise SettingError("model.shifted_keys: this model has no short convolutions that could shift its keys")
    for mixer in mixers:
        for name, first, shares in (("q_conv1d", 1, True), ("k_conv1d", 2, True), ("v_conv1d", 1, False)):
            weight = getattr(mixer, name).weight
            channels = torch.arange(len(weight))
            shift = channels % (weight.shape[-1] - 1) if shares else torch.zeros_like(channels)
            weight.zero_()
            weight[channels, 0, -first - shift] = 1.0
