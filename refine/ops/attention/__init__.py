"""Causal attention: over a sliding window (the second half of a LaCT layer), and over all earlier tokens.

Begin with window.py and full.py; then shared_windows.py and shared_prefixes.py (rollouts over windows or prefixes of
one text; stretches.py and places.py say which are worked on at once) and rotary.py (arXiv 2104.09864).
"""
