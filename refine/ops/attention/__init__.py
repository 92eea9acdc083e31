"""Causal attention over a sliding window, the second half of a LaCT layer.

Begin with window.py; then shared_windows.py (rollouts over windows of one text) and rotary.py (arXiv 2104.09864).
"""
