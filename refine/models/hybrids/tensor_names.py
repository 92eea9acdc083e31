"""What a family's tensors are called on disk: other spellings, and tensors that are no part of the language model."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class TensorNames:
    """Parameters are named as in the release of the text model; `spellings`: (pattern, replacement) pairs that turn
    other published names into these. `ignored`: patterns of tensors that are left out, with what they are."""

    spellings: tuple[tuple[str, str], ...] = ()
    ignored: tuple[tuple[str, str], ...] = ()

    def parameter(self, name: str) -> str | None:
        """The parameter that the tensor `name` belongs to, or None for one that is left out."""
        if self.left_out(name) is not None:
            return None
        for pattern, replacement in self.spellings:
            name = re.sub(pattern, replacement, name)
        return name

    def left_out(self, name: str) -> str | None:
        """What the tensor `name` is, if it is left out."""
        return next((what for pattern, what in self.ignored if re.match(pattern, name)), None)
