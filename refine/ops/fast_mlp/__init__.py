"""The fast-weight MLP of LaCT (arXiv 2505.23884): a SwiGLU MLP whose weights move once in a chunk of tokens.

Begin with mlp.py (formula and twin); then read.py (the loop over chunks), schedule.py, keys.py, gradient.py, muon.py.
"""
