"""DeltaNet (arXiv 2406.06484), Gated DeltaNet (2412.06464), Kimi Delta Attention (2510.26692), Gated DeltaProduct
(2502.10297) and Comba (2506.02475) in flash-linear-attention's formats.

Begin with mixer.py, which all share; the other files add config and rates. Gated DeltaProduct and Comba give the rule
of Gated DeltaNet other inputs.
"""
