"""Reading in any way gives the same hidden states, memory and gradients. language_model.py and delta/
are tested here, in test_tapping.py, and with every option in test_variants.py."""

import pytest
import torch

LENGTHS = [1, 2, 3, 63, 64, 65, 131]


def _in_pieces(model, tokens, sizes):
    """Hidden states and final memory of a read in pieces of `sizes` tokens."""
    memory, hidden, at = None, [], 0
    for size in sizes:
        reading = model.read(tokens[:, at : at + size], memory)
        hidden.append(reading.hidden)
        memory, at = reading.memory, at + size
    assert at == tokens.shape[1]
    return torch.cat(hidden, 1), memory


@pytest.mark.parametrize("length", LENGTHS)
def test_token_by_token_is_the_whole(model, tokens, compare, weigh, gradients_of, length):
    text = tokens(2, length)
    whole = model.read(text)
    hidden, memory = _in_pieces(model, text, [1] * length)
    compare.tensors(hidden, whole.hidden, "hidden")
    compare.tensors(model.logits(hidden), model.logits(whole.hidden), "logits")
    compare.memories(memory, whole.memory)
    one, other = weigh(hidden, memory), weigh(whole.hidden, whole.memory)
    compare.gradients(gradients_of(model, one), gradients_of(model, other))


@pytest.mark.parametrize("length", [1, 2, 12])
def test_every_parameter_has_a_gradient_however_short_the_text(variant, tokens, length):
    """Without one DDP waits for ever, and a weight is decayed in some steps and not in others."""
    variant.logits(variant.read(tokens(1, length)).hidden).sum().backward()
    assert [name for name, parameter in variant.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("sizes", [(64, 64, 3), (1, 63, 65, 2), (130, 1), (7, 11, 13, 17, 83)], ids=str)
def test_pieces_of_any_size_are_the_whole(model, tokens, compare, weigh, gradients_of, sizes):
    text = tokens(2, sum(sizes))
    whole = model.read(text)
    hidden, memory = _in_pieces(model, text, sizes)
    compare.tensors(hidden, whole.hidden, "hidden")
    compare.memories(memory, whole.memory)
    one, other = weigh(hidden, memory), weigh(whole.hidden, whole.memory)
    compare.gradients(gradients_of(model, one), gradients_of(model, other))


def test_a_row_reads_the_same_alone_and_in_any_batch(model, tokens, compare):
    text = tokens(5, 70)
    together = model.read(text)
    for row in (0, 3):
        alone = model.read(text[row : row + 1])
        compare.tensors(together.hidden[row : row + 1], alone.hidden, "hidden")
        compare.memories(together.memory.select([row]), alone.memory)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_no_real_token(model, tokens, compare, weigh, gradients_of, side):
    lengths, width = [1, 66, 37, 90], 90
    text, mask = torch.zeros(4, width, dtype=torch.int64), torch.zeros(4, width, dtype=torch.int64)
    where = [slice(width - n, width) if side == "left" else slice(0, n) for n in lengths]
    for row, place in enumerate(where):
        text[row, place], mask[row, place] = tokens(1, lengths[row], seed=row)[0], 1
    padded = model(text, attention_mask=mask, use_cache=True)
    logits = torch.cat([padded.logits[row, place] for row, place in enumerate(where)])
    alone = [model.read(tokens(1, n, seed=row)) for row, n in enumerate(lengths)]
    expected = torch.cat([model.logits(reading.hidden)[0] for reading in alone])
    compare.tensors(logits, expected, "logits")
    for row, reading in enumerate(alone):
        compare.memories(padded.past_key_values.memory.select([row]), reading.memory)
    compare.gradients(gradients_of(model, weigh(logits)), gradients_of(model, weigh(expected)))


def test_packed_documents_read_as_if_each_were_alone(model, tokens, compare, weigh, gradients_of):
    lengths, width = [[3, 64, 1, 20], [65, 5], [90]], 90
    text = tokens(3, width)
    before = model.read(tokens(3, 7, seed=5)).memory.detach()
    packed = model.read(text, before, lengths=lengths)
    real, expected = [], []
    for row, documents in enumerate(lengths):
        at = 0
        for number, length in enumerate(documents):
            start = before.select([row]) if number == 0 else None
            alone = model.read(text[row : row + 1, at : at + length], start)
            real.append(packed.hidden[row, at : at + length])
            expected.append(alone.hidden[0])
            at += length
        compare.memories(packed.memory.select([row]), alone.memory)
        assert not packed.hidden[row, at:].any(), "what documents leave of a row is padding"
    compare.tensors(torch.cat(real), torch.cat(expected), "hidden")
    one, other = weigh(torch.cat(real)), weigh(torch.cat(expected))
    compare.gradients(gradients_of(model, one), gradients_of(model, other))


def test_a_row_that_is_all_padding_keeps_its_memory(model, tokens, compare):
    before = model.read(tokens(2, 9)).memory
    mask = torch.tensor([[0, 0], [1, 1]])
    after = model(
        tokens(2, 2, seed=3), attention_mask=mask, past_key_values=before, use_cache=True
    ).past_key_values.memory
    compare.memories(after.select([0]), before.select([0]))
    assert after.positions.tolist() == [9, 11]


def test_gradients_flow_through_a_memory_into_the_text_before_it(model, tokens, compare, weigh, gradients_of):
    text = tokens(2, 80)
    first = model.read(text[:, :71])
    second = model.read(text[:, 71:], first.memory)
    whole = model.read(text)
    one, other = weigh(second.hidden), weigh(whole.hidden[:, 71:])
    compare.gradients(gradients_of(model, one), gradients_of(model, other))


def test_bfloat16_agrees_with_float64_within_its_rounding(name, configs, build, tokens, compare):
    exact, rounded = build(configs[name]), build(configs[name], torch.bfloat16)
    exact.load_state_dict({key: value.double() for key, value in rounded.state_dict().items()})
    text = tokens(2, 131)
    whole, expected = rounded.read(text), exact.read(text)
    hidden, _ = _in_pieces(rounded, text, [64, 1, 2, 64])
    for result in (whole.hidden, hidden):
        error = compare.distance(result, expected.hidden)
        assert error < 0.05, f"{error:.3f}"
    held = [t.dtype for layer in whole.memory.layers for key, t in layer.tensors().items() if key == "state"]
    assert all(dtype == torch.float32 for dtype in held)


def test_autocast_reads_with_float32_states(name, configs, build, tokens, compare):
    model = build(configs[name], torch.float32)
    text = tokens(2, 70)
    expected = model.read(text).hidden
    with torch.autocast("cpu", torch.bfloat16):
        reading = model.read(text)
        following = model.read(text[:, :3], reading.memory)
    assert 0 < compare.distance(reading.hidden, expected) < 0.05
    following.hidden.float().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
