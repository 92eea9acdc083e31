"""Models that mix layers of a delta rule and of softmax attention, in the formats of their releases.

A family is one file: a config, and a table of its kinds of layers. Begin with qwen3_5.py or olmo_hybrid.py; then
model.py and configuration.py, which they share, tensor_names.py (what tensors are called on disk) and regrouping.py
(how parameters lie in them). Mixtures of experts: qwen3_5_moe.py, qwen3_next.py and kimi_linear.py.
"""
