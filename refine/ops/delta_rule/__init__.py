"""The delta rule of DeltaNet (arXiv 2406.06484) and Gated DeltaNet (arXiv 2412.06464).

Begin with rule.py (formula and twin); then chunks.py, chunked.py (forward and backward by hand), fla.py (CUDA kernels).
"""
