"""The config fields that fla's `gated_deltanet`, `kda`, `gated_deltaproduct` and `comba` share."""

from __future__ import annotations

import math

from refine.models.attention.fla import attention_layers, memory_text
from refine.models.configuration import FlaConfig


class WideValuesConfig(FlaConfig):
    """Heads of q and k are `head_dim` wide, those of v `expand_v` times that; fields and defaults are fla's.

    A format with `num_v_heads` may have more heads of v than of q and k.
    """

    num_hidden_layers: int = 21
    num_heads: int = 6
    head_dim: int = 256
    expand_v: float = 2.0
    use_short_conv: bool = True
    conv_size: int = 4

    @property
    def value_heads(self) -> int:
        """Heads of v."""
        return getattr(self, "num_v_heads", None) or self.num_heads

    @property
    def value_width(self) -> int:
        """Width of a head of v."""
        return int(self.head_dim * self.expand_v)

    @property
    def convolution(self) -> int:
        """Width of the convolutions; 0: none."""
        return self.conv_size if self.use_short_conv else 0

    @property
    def layer_sizes(self) -> tuple[int, int, int, int, int, int, float]:
        """What a `DeltaMixer` is made of: hidden size, heads of q and k, of v, their widths, width of the convolutions,
        epsilon of the output norm."""
        heads = self.num_heads, self.value_heads, self.head_dim, self.value_width
        return self.hidden_size, *heads, self.convolution, self.norm_eps

    def refuse_unsupported(self) -> None:
        """Raises ModelError that names a field whose value is not implemented or not possible."""
        super().refuse_unsupported()
        whole = isinstance(self.head_dim, int) and not isinstance(self.head_dim, bool) and self.head_dim > 0
        self.require(whole, "head_dim", "expected a whole number above 0")
        given = getattr(self, "num_v_heads", None)
        groups = given is None or (given > 0 and given % self.num_heads == 0)
        self.require(groups, "num_v_heads", f"expected a multiple of {self.num_heads} (num_heads)")
        width = self.head_dim * self.expand_v
        fits = width > 0 and math.isclose(width, int(width), rel_tol=1e-5)
        self.require(fits, "expand_v", f"{self.head_dim} (head_dim) times this must be a whole number above 0")
        self.require(isinstance(self.use_short_conv, bool), "use_short_conv", "expected true or false")

    def refuse_attention(self) -> None:
        """Raises ModelError that names a field of `attn` that is unknown or not possible."""
        attention_layers(self)

    def memory_shape(self) -> str:
        """The dimensions of a memory, as text. Part of `signature`."""
        heads = f"heads {self.num_heads}, value heads {self.value_heads}"
        widths = f"keys {self.head_dim}, values {self.value_width}"
        layers = f"layers {self.num_hidden_layers}, {heads}, {widths}, convolution {self.convolution}"
        return f"{layers}{memory_text(self)}"
