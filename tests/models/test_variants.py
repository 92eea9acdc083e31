"""Options of a config that change the mathematics keep every promise of the plain models."""

import pytest
import torch


def test_a_variant_reads_token_by_token_packed_and_tapped_alike(variant, tokens, compare, weigh, gradients_of):
    text = tokens(2, 67)
    memory, hidden = None, []
    for t in range(67):
        reading = variant.read(text[:, t : t + 1], memory)
        memory = reading.memory
        hidden.append(reading.hidden)
    whole = variant.read(text, tappable=True)
    compare.tensors(torch.cat(hidden, 1), whole.hidden)
    compare.memories(memory, whole.memory)
    tapped = whole.tap(torch.tensor([[66], [2]]))
    alone = [variant.read(text[:1, :66]).memory, variant.read(text[1:, :2]).memory]
    for row, expected in enumerate(alone):
        compare.memories(tapped.select([row]), expected)
    packed = variant.read(text, lengths=[[1, 66], [67]])
    compare.tensors(packed.hidden[0, 1:], variant.read(text[:1, 1:]).hidden[0])
    one, other = weigh(torch.cat(hidden, 1), tapped), weigh(whole.hidden, type(tapped).cat(alone))
    compare.gradients(gradients_of(variant, one), gradients_of(variant, other))


@pytest.mark.slow  # 26 variants; the plain models are in test_gradient_checkpointing.py
def test_a_variant_gives_the_same_gradients_under_gradient_checkpointing(variant, tokens, compare, weigh, gradients_of):
    text, positions = tokens(2, 131), torch.tensor([[130, 1], [64, 66]])
    results = []
    for checkpointing in (False, True):
        variant.model.gradient_checkpointing = checkpointing
        reading = variant.read(text, tappable=True)
        results.append(gradients_of(variant, weigh(reading.hidden, reading.tap(positions), reading.memory)))
    compare.gradients(*results)
