"""The delta rule of DeltaNet (arXiv 2406.06484), Gated DeltaNet (arXiv 2412.06464) and KDA (arXiv 2510.26692).

Begin with rule.py (formula and twin); then chunks.py, chunked.py (forward and backward by hand), decay.py and
channel_decay.py (a decay for each head, for each key channel), fla.py (CUDA kernels).
"""
