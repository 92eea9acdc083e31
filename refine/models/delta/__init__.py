"""DeltaNet (arXiv 2406.06484) and Gated DeltaNet (arXiv 2412.06464) in flash-linear-attention's format.

Begin with mixer.py, which both share; delta_net.py and gated_delta_net.py add config and rates.
"""
