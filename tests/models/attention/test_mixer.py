"""The attention layer is its formula, whatever its norms, positions, gate, groups and biases."""

import pytest
import torch

from refine.models.attention.mixer import Attention, AttentionOptions
from refine.models.token_mixer import Keep
from refine.ops.layout import Layout
from refine.ops.rms_norm import RMSNorm

PLAIN = {"hidden": 24, "heads": 6, "groups": 2, "width": 10}
OPTIONS = {
    "without positions": {},
    "one group for each head, positions": {"groups": 6, "turned": 10, "theta": 50.0},
    "partial positions, gate, norm of heads": {"turned": 4, "gate": True, "norm": lambda n: RMSNorm(n, 1e-5)},
    "norm of all heads at once, biases": {
        "norm": lambda n: RMSNorm(n, 1e-5),
        "norm_over": "all",
        "bias": True,
        "output_bias": True,
    },
    "a window": {"turned": 10, "window": 7},
}


def formula(layer, x, options):
    """x [T, D] of one document, in float64, written out token by token."""
    T, A, h, K = len(x), options.heads, options.groups, options.width
    q, k, v = layer.q_proj(x), layer.k_proj(x), layer.v_proj(x)
    gate = None
    if options.gate:
        both = q.view(T, A, 2, K)
        q, gate = both[:, :, 0], both[:, :, 1]
    shapes = (
        (T, -1) if options.norm_over == "all" else (T, A, K),
        (T, -1) if options.norm_over == "all" else (T, h, K),
    )
    q, k = q.reshape(shapes[0]), k.reshape(shapes[1])
    if options.norm is not None:
        q, k = (
            y / (y.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
            for y, norm in ((q, layer.q_norm), (k, layer.k_norm))
        )
    q, k, v = q.reshape(T, A, K), k.reshape(T, h, K), v.view(T, h, K)
    half = options.turned // 2
    for y in (q, k):
        old = y.clone()
        for t in range(T):
            for i in range(half):
                angle = torch.tensor(t * options.theta ** (-2 * i / options.turned), dtype=torch.float64)
                a, b = old[t, :, i], old[t, :, i + half]
                y[t, :, i], y[t, :, i + half] = a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()
    rows = []
    for t in range(T):
        first = 0 if options.window is None else max(0, t - options.window + 1)
        heads = []
        for a in range(A):
            keys, values = k[first : t + 1, a // (A // h)], v[first : t + 1, a // (A // h)]
            out = ((keys @ q[t, a]) / K**0.5).softmax(0) @ values
            heads.append(out if gate is None else out * gate[t, a].sigmoid())
        rows.append(torch.cat(heads))
    return layer.o_proj(torch.stack(rows))


@pytest.mark.parametrize("which", OPTIONS)
@torch.no_grad()
def test_it_is_the_formula(which):
    options = AttentionOptions(**{**PLAIN, **OPTIONS[which]})
    torch.manual_seed(0)
    layer = Attention(options).double()
    for parameter in layer.parameters():
        parameter.uniform_(-1, 1)
    x = torch.randn(30, 24, dtype=torch.float64)
    y, _ = layer(x, Layout([19, 11]), None, Keep.ENDS)
    expected = torch.cat([formula(layer, part, options) for part in x.split([19, 11])])
    assert float((y - expected).norm() / expected.norm()) < 1e-12
