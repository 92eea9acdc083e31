"""LaCT (arXiv 2505.23884), in the format of its public release.

Begin with mixer.py (the layer); then memory.py and recent_tokens.py (what it remembers), trace.py (taps), model.py.
"""
