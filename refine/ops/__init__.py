"""The mathematics of memory: pure functions of tensors, each fast path beside a slow twin that is the formula.

Begin with layout.py (documents laid end to end, taps); then one family: delta_rule, fast_mlp or attention.
"""
