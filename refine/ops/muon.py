"""Muon's orthogonalisation: five Newton–Schulz steps with the coefficients of the LaCT release (METHOD.md "LaCT").

Shape legend: P matrices (any number of leading dimensions) · I rows · J columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
        product = x @ x.mT
        x = a * x + (b * product + c * (product @ product)) @ x
    return (x.mT if tall else x).to(gradient.dtype)
