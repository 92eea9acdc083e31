"""A tapped memory is the memory after that prefix, with the prefix's gradient, whenever and however it is tapped."""

import pytest
import torch

POSITIONS = torch.tensor([[1, 64, 131, 65, 2, 64], [130, 3, 128, 63, 1, 77]])
WAYS = ["known before", "after the read", "under gradient checkpointing", "known before, under gradient checkpointing"]


def _tap(model, text, positions, way, **more):
    model.model.gradient_checkpointing = "checkpointing" in way
    if way.startswith("known"):
        reading = model.read(text, taps=positions, **more)
        return reading, reading.tapped
    reading = model.read(text, tappable=True, **more)
    return reading, reading.tap(positions)


@pytest.mark.parametrize("way", WAYS)
def test_a_tap_is_the_memory_after_the_prefix_and_carries_its_gradient(
    model, tokens, compare, weigh, gradients_of, way
):
    text = tokens(2, 131)
    reading, tapped = _tap(model, text, POSITIONS, way)
    prefixes = [model.read(text[b : b + 1, :t]) for b, row in enumerate(POSITIONS.tolist()) for t in row]
    assert tapped.rows == POSITIONS.numel()
    for row, prefix in enumerate(prefixes):
        compare.memories(tapped.select([row]), prefix.memory)
    whole = model.read(text)
    compare.memories(reading.memory, whole.memory)
    again = type(tapped).cat([prefix.memory for prefix in prefixes])
    one, other = weigh(tapped, reading.hidden), weigh(again, whole.hidden)
    compare.gradients(gradients_of(model, one), gradients_of(model, other))


@pytest.mark.parametrize("way", WAYS)
def test_what_is_read_after_a_tap_sends_the_same_gradient_into_the_prefix(
    model, tokens, compare, weigh, gradients_of, way
):
    text, positions = tokens(2, 90), torch.tensor([[66, 5], [64, 90]])
    following = tokens(4 * 3, 5, seed=2)
    _, tapped = _tap(model, text, positions, way)
    rollouts = model.read(following, tapped.repeat(3))
    expected = []
    for row, (b, t) in enumerate([(0, 66), (0, 5), (1, 64), (1, 90)]):
        for i in range(3):
            joined = torch.cat([text[b, :t], following[row * 3 + i]])[None]
            expected.append(model.read(joined).hidden[0, t:])
    compare.tensors(rollouts.hidden, torch.stack(expected), "hidden after the tap")
    one, other = weigh(rollouts.hidden), weigh(torch.stack(expected))
    compare.gradients(gradients_of(model, one), gradients_of(model, other))


@pytest.mark.parametrize("way", WAYS)
def test_taps_in_packed_rows_after_a_memory(model, tokens, compare, way):
    before = model.read(tokens(2, 7, seed=5)).memory.detach()
    text, lengths = tokens(2, 131), [[2, 70, 59], [131]]
    _, tapped = _tap(
        model, text, torch.tensor([[1, 2, 3, 72, 131], [3, 64, 66, 70, 128]]), way, memory=before, lengths=lengths
    )
    spans = [(0, 0, 1, 0), (0, 0, 2, 0), (0, 2, 3, None), (0, 2, 72, None), (0, 72, 131, None),
             (1, 0, 3, 1), (1, 0, 64, 1), (1, 0, 66, 1), (1, 0, 70, 1), (1, 0, 128, 1)]  # fmt: skip
    for row, (b, start, end, origin) in enumerate(spans):
        memory = None if origin is None else before.select([origin])
        compare.memories(tapped.select([row]), model.read(text[b : b + 1, start:end], memory).memory)


def test_without_gradient_taps_known_before_give_the_same(model, tokens, compare):
    text = tokens(2, 131)
    expected = model.read(text, taps=POSITIONS)
    with torch.no_grad():
        reading = model.read(text, taps=POSITIONS)
    compare.memories(reading.tapped, expected.tapped)
    compare.memories(reading.memory, expected.memory)
    assert not any(t.requires_grad for layer in reading.tapped.layers for t in layer.tensors().values())


@pytest.mark.parametrize("bad", [0, 132, -1])
def test_a_tap_out_of_range_is_refused_with_its_place(model, tokens, bad):
    reading = model.read(tokens(2, 131), tappable=True)
    with pytest.raises(Exception, match=rf"tap {bad} at \[1, 0\].*1 \.\. 131|tap {bad} at \[1, 0\]"):
        reading.tap(torch.tensor([[5], [bad]]))


def test_a_read_that_was_not_made_tappable_says_so(model, tokens):
    with pytest.raises(Exception, match="tappable=True"):
        model.read(tokens(1, 3)).tap(torch.tensor([[1]]))
