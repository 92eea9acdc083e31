"""Initial weights with which a new model recalls n-grams (the setting `model.shifted_keys`).

A layer writes (key, value) pairs and reads the values whose keys match its query. Here each key is made of the tokens
before its value's token, and each query of the last tokens. So a layer writes "after these tokens came this one" and
reads "what came after these tokens?". A model with random weights has to learn this first. It is the shift of H3
(arXiv 2212.14052, section 3.2), for several tokens.

DeltaNet, Gated DeltaNet and KDA shift by the short convolutions of every layer, in hybrids too; layers of attention
start as they are. LaCT has no convolutions: attention heads of its first layer copy the previous tokens, and the fast
keys of later layers read the copies.

Shape legend: D hidden size · A attention heads · W width of a convolution.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from refine.errors import SettingError
from refine.models.delta.mixer import ShortConvolution
from refine.models.hybrids.qwen3_5 import Qwen3_5GatedDeltaNet
from refine.models.lact.mixer import BASE_RATE, Lact

# of LaCT:
BACK = (1, 2)  # how many tokens back each head of the first layer looks
SHARPNESS = 6.0  # scale of these heads' queries and keys: nearly all attention goes to the token at that distance
TURNING = 8  # rotary pairs of a head that turn fast enough to tell neighbouring tokens apart
GATE_GAIN = 24.0  # factor of w0 and w2: makes the fast features of unit keys nonlinear, which keeps keys apart
WRITE_RATE = 3.0  # learning rate of w1; w0 and w2 keep the published rate, so that features stay as they are
READ_SCALE = 1.0  # bias of the fast output's scale, before its SiLU
# of Qwen3.5:
LIFETIME = 1024.0  # tokens after which a head has forgotten all but 1/e
GATE_WIDTH = 3.0  # factor of the weights of the output gate: its SiLU passes about half of the channels, as a ReLU


@torch.no_grad()
def shift_keys(model: nn.Module) -> None:
    """Set the initial weights of a new model as above. Raises SettingError: a model whose keys cannot be shifted."""
    fast_mixers = [module for module in model.modules() if isinstance(module, Lact)]
    if fast_mixers:
        _shift_fast_keys(fast_mixers)
    else:
        _shift_convolutions(model)


def _shift_convolutions(model: nn.Module) -> None:
    """Let each channel of a short convolution pass on one earlier token.

    The W - 1 positions back are shared out over the channels: channel c of q passes on the token c mod (W - 1) back,
    and channel c of k the token one further back; v passes on the token itself.
    """
    mixers = {module: weights for module in model.modules() if (weights := _convolutions(module))}
    if not mixers:
        raise SettingError("model.shifted_keys: this model has no short convolutions that could shift its keys")
    for mixer, weights in mixers.items():
        for weight, first, shares in zip(weights, (1, 2, 1), (True, True, False), strict=True):
            channels = torch.arange(len(weight))
            own = channels % len(weights[0])  # where a token has several keys, each is shifted alike
            shift = own % (weight.shape[-1] - 1) if shares else torch.zeros_like(channels)
            weight.zero_()
            weight[channels, 0, -first - shift] = 1.0
        if isinstance(mixer, Qwen3_5GatedDeltaNet):
            _ready_to_recall(mixer)


def _convolutions(mixer: nn.Module) -> list[Tensor]:
    """The weights [F, 1, W] of the convolutions of q, k and v, if the module has them and they reach a token back."""
    if isinstance(mixer, Qwen3_5GatedDeltaNet):
        found = list(mixer.conv1d.weight.split(mixer.widths))
    elif isinstance(getattr(mixer, "k_conv1d", None), ShortConvolution):
        found = [getattr(mixer, f"{one}_conv1d").weight for one in "qkv"]
    else:
        return []
    return found if found[0].shape[-1] > 1 else []


def _ready_to_recall(mixer: Qwen3_5GatedDeltaNet) -> None:
    """Let queries look for the very features of the keys, let gates pass on what is read, and let heads forget slowly.

    So a layer recalls before any training. With shifts, gates and slow heads alone, a drill of 400 steps taught no
    recall; the usual heads forget within a token.
    """
    q, k, _ = mixer.in_proj_qkv.weight.split(mixer.widths)
    q.copy_(k)
    mixer.in_proj_z.weight.mul_(GATE_WIDTH)
    mixer.A_log.zero_()
    mixer.dt_bias.fill_(_inverse_softplus(1 / LIFETIME))


def _shift_fast_keys(mixers: list[Lact]) -> None:
    """Let the first mixer copy the tokens before, and the later ones read and write with these copies, by w1 alone."""
    first, *later = mixers
    if first.qkv.bias is None or not first.nope or hasattr(first, "q_norm") or len(BACK) > first.heads:
        needs = f"qkv_bias, ttt_nope, no attn_qk_norm and at least {len(BACK)} num_attn_heads"
        raise SettingError(f"model.shifted_keys: a LaCT needs a model.config with {needs}")
    seen = _copy_tokens_before(first)
    for mixer in later:
        _read_copies(mixer, seen)
    for mixer in mixers:
        _write_by_w1(mixer)


def _copy_tokens_before(first: Lact) -> list[Tensor]:
    """Let each of the first heads copy some directions of the token at its distance into directions of its own.

    Returns the directions [D / A, D] that hold the token itself, the one before, the one before that.
    """
    hidden, width = first.qkv.in_features, first.qkv.in_features // first.heads
    read, written = (_directions(hidden, first.qkv.weight) for _ in range(2))
    copies = [written[i * width : (i + 1) * width] for i in range(len(BACK))]
    for head, distance in enumerate(BACK):
        _look_back(first, head, distance)
        rows = slice(head * width, (head + 1) * width)
        first.qkv.weight[2 * hidden :][rows] = read[:width] * first.qkv.weight.std() * math.sqrt(hidden)
        first.o_proj.weight[:, rows] = copies[head].T
    if hasattr(first, "ttt_scale_proj"):
        first.ttt_scale_proj.weight.zero_()  # the fast branch writes to the same channels, so it starts silent
    return [read[:width], *copies]


def _read_copies(mixer: Lact, seen: list[Tensor]) -> None:
    """Let queries read the directions of the last tokens, and keys those of the tokens one further back."""
    hidden, width = mixer.qkv.in_features, mixer.qkv.in_features // mixer.heads
    for head in range(mixer.heads):
        rows, which = slice(head * width, (head + 1) * width), head % len(BACK)
        mixer.qkv.weight[:hidden][rows] = seen[which]
        mixer.qkv.weight[hidden : 2 * hidden][rows] = seen[which + 1]
    if hasattr(mixer, "ttt_scale_proj"):
        mixer.ttt_scale_proj.weight.mul_(0.1)
        mixer.ttt_scale_proj.bias.fill_(READ_SCALE)


def _write_by_w1(mixer: Lact) -> None:
    """Raise the learning rate of w1 only, and the scale of w0 and w2."""
    mixer.lr_proj.weight.mul_(0.1)
    mixer.lr_proj.bias.view(-1, 3)[:, 1] = _inverse_softplus(WRITE_RATE) - _inverse_softplus(BASE_RATE)
    for name, weight in mixer.named_parameters():
        if name.split(".")[0] in ("w0", "w2"):  # a low-rank weight has two factors
            weight.mul_(GATE_GAIN if "." not in name else math.sqrt(GATE_GAIN))


def _look_back(mixer: Lact, head: int, distance: int) -> None:
    """Let attention head `head` look `distance` tokens back, whatever the tokens are.

    Its query and key are constant (biases), rotated so that their product is largest at that distance.
    """
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
    """[count, count]: random orthonormal rows, with the device and dtype of `like`."""
    return torch.linalg.qr(torch.randn(count, count, device=like.device))[0].to(like.dtype)


def _inverse_softplus(y: float) -> float:
    return math.log(math.expm1(y))
