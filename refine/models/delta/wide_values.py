"""The config fields that fla's `gated_deltaproduct` and `comba` share: heads of one width, and values of another."""

from __future__ import annotations

import math

from refine.models.attention.fla import attention_layers, memory_text
from refine.models.configuration import FlaConfig


class WideValuesConfig(FlaConfig):
    """Heads of q and k are `head_dim` wide, those of v `expand_v` times that. Fields and defaults are fla's."""

    num_hidden_layers: int = 21
    num_heads: int = 6
    head_dim: int = 256
    expand_v: float = 2.0
    use_output_gate: bool = True
    use_short_conv: bool = True
    conv_size: int = 4

    @property
    def value_heads(self) -> int:
        """Heads of v."""
        return getattr(self, "num_v_heads", None) or self.num_heads

    def refuse_unsupported(self) -> None:
        """Raises ModelError that names a field whose value is not implemented or not possible."""
        super().refuse_unsupported()
        whole = isinstance(self.head_dim, int) and not isinstance(self.head_dim, bool) and self.head_dim > 0
        self.require(whole, "head_dim", "expected a whole number above 0")
        width = self.head_dim * self.expand_v
        fits = width > 0 and math.isclose(width, int(width), rel_tol=1e-5)
        self.require(fits, "expand_v", f"{self.head_dim} (head_dim) times this must be a whole number above 0")
        for name in ("use_output_gate", "use_short_conv"):
            self.require(isinstance(getattr(self, name), bool), name, "expected true or false")

    def refuse_attention(self) -> None:
        """Raises ModelError that names a field of `attn` that is unknown or not possible."""
        attention_layers(self)

    def memory_shape(self) -> str:
        """The dimensions of a memory, as text. Part of `signature`."""
        heads = f"heads {self.num_heads}, value heads {self.value_heads}"
        widths = f"keys {self.head_dim}, values {int(self.head_dim * self.expand_v)}"
        convolution = f"convolution {self.conv_size * self.use_short_conv}"
        return f"layers {self.num_hidden_layers}, {heads}, {widths}, {convolution}{memory_text(self)}"
