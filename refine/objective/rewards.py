"""Step 4 of METHOD.md: what a rollout is worth, against the text that really follows (arXiv 2602.16704, section 3).

Shape legend: R places · n rollouts of a place · k tokens of a rollout · D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("cosine", "binary", "hybrid")


@torch.no_grad()
def rewards(hidden: Tensor, actual: Tensor, rollouts: Tensor, text: Tensor) -> dict[str, Tensor]:
    """Every kind of reward, [R, n] each, in at least float32.

    hidden [R, n, k, D]: states after each sampled token; actual [R, k, D]: after each token of the text; rollouts
    [R, n, k] and text [R, k]: the tokens. `cosine` = mean cos, `binary` = share of equal tokens, `hybrid` = their sum.
    A rollout equal to the text scores 1, 1 and 2.
    """
    precise = torch.promote_types(hidden.dtype, torch.float32)
    cosine = torch.cosine_similarity(hidden.to(precise), actual.to(precise)[:, None], dim=-1).mean(-1)
    binary = (rollouts == text[:, None]).to(precise).mean(-1)
    return {"cosine": cosine, "binary": binary, "hybrid": cosine + binary}
