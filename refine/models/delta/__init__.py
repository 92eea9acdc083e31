"""DeltaNet (arXiv 2406.06484), Gated DeltaNet (arXiv 2412.06464) and Kimi Delta Attention (arXiv 2510.26692) in
flash-linear-attention's format.

Begin with mixer.py, which all share; delta_net.py, gated_delta_net.py and kda.py add config and rates.
"""
