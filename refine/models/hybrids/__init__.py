"""Models that mix layers of a delta rule and of softmax attention, in the formats of their releases.

A family is one file: a config, and a table of its kinds of layers. Begin with qwen3_5.py, olmo_hybrid.py or
kimi_linear.py; then model.py and configuration.py, which they share, and tensor_names.py (what tensors are called on
disk).
"""
