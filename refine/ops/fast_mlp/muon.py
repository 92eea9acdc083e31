"""Muon's orthogonalisation: five Newton–Schulz steps with the coefficients of LaCT's release (arXiv 2505.23884).

Shape legend: P matrices (any number of leading dimensions) · I rows · J columns.

The steps multiply small singular values, and their rounding, by up to 490. So two ways of reading with Muon agree to
1e-10 in float64, but not to 1e-5 in float32, however the steps are computed. With everything else in float64, rounding
the embeddings of a two-layer model to float32 once moves its gradients by 2e-6 to 1e-5 if a chunk is longer than a fast
head is wide, and by 3e-5 to 1e-3 if it is about as long (12 seeds).
"""

from __future__ import annotations

import torch
from torch import Tensor

from refine.ops.autocast import product

COEFFICIENTS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


def orthogonalise(gradient: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """gradient [..., I, J] with its singular values pushed towards 1, by X <- aX + (bA + cA²)X with A = XXᵀ.

    Computed in `dtype` (bfloat16 in the published models; default: the gradient's own), returned in the gradient's.
    A matrix of zeros stays zero.
    """
    x = gradient if dtype is None else gradient.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for a, b, c in COEFFICIENTS:
        square = product(x, x.mT)
        x = a * x + product(b * square + c * product(square, square), x)
    return (x.mT if tall else x).to(gradient.dtype)
