"""The MLP of a block; blocks and stacks are tested through the models (test_reading.py)."""

import torch
from transformers import PreTrainedConfig

from refine.models.blocks import SwiGLU
from refine.ops import row_groups


def test_the_mlp_read_in_parts_is_the_whole(monkeypatch):
    monkeypatch.setattr(row_groups, "CACHED_NUMBERS", 5 * 24)  # five rows of the inner width
    mlp, x = SwiGLU(PreTrainedConfig(hidden_size=16), inner=24), torch.randn(23, 16)
    widths = []
    mlp.down_proj.register_forward_hook(lambda module, given, out: widths.append(len(out)))
    whole = mlp(x)
    assert widths == [23], "with gradient at once: what backward needs is as long as the text"
    with torch.no_grad():
        parts = mlp(x)
        none = mlp(x[:0])
    assert widths == [23, 5, 5, 5, 5, 3, 0] and none.shape == (0, 16)
    torch.testing.assert_close(parts, whole.detach())
