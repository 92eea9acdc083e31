"""Softmax attention as a token mixer: its memory is keys and values, and grows with the text (without a window).

Begin with mixer.py (the layer) or latent.py (that of Kimi Linear); then memory.py (what it remembers), spans.py (tokens
that rows share), trace.py (taps).
"""
