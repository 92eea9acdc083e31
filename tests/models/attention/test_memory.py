"""Keys and values are views of the read that made them: taps, rollouts and rows share them, and bytes count once."""

import pytest
import torch

from refine.errors import ModelError
from refine.models import Memory
from refine.models.attention.memory import AttentionMemory
from refine.models.attention.spans import Spans
from refine.ops.layout import Layout

HYBRID = {
    "model_type": "gated_deltanet",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_heads": 2,
    "head_dim": 8,
    "attn": {"layers": [1], "num_heads": 4, "num_kv_heads": 2},
}


@pytest.fixture
def hybrid(build):
    """A model with one layer of full attention, the second."""
    return build(HYBRID, torch.float32)


def pointers(memory):
    """Where the tensors of the prefix of the attention layer lie."""
    return [x.untyped_storage().data_ptr() for x in memory.layers[1].prefix.tokens.values()]


def test_taps_rollouts_and_rows_share_the_reads_storage(hybrid, tokens):
    reading = hybrid.read(tokens(2, 90), tappable=True)
    tapped = reading.tap(torch.tensor([[3, 60], [90, 60]]))
    rollouts = tapped.repeat(4)
    after = hybrid.read(tokens(16, 5), rollouts).memory
    for other in (
        tapped,
        rollouts,
        after,
        after.detach(),
        after.select([3, 3, 0]),
        reading.tap(torch.tensor([[1], [1]])),
    ):
        assert pointers(other) == pointers(reading.memory)
    token = 2 * 2 * 8 * 4  # keys and values, heads, width, bytes
    assert tapped.layers[1].nbytes == (60 + 90) * token + 4 * 8, "what two taps of a row share counts once"
    assert after.layers[1].nbytes == (150 + 16 * 5) * token + 16 * 8


def test_memories_of_one_read_are_joined_without_a_copy_and_others_with_one(hybrid, tokens, compare):
    reading = hybrid.read(tokens(2, 30), tappable=True)
    early, late = reading.tap(torch.tensor([[3], [4]])), reading.tap(torch.tensor([[30], [20]]))
    joined = Memory.cat([early, hybrid.fresh_memory(1), late])
    assert pointers(joined) == pointers(early)
    other = hybrid.read(tokens(1, 7, seed=4)).memory
    both = Memory.cat([joined, other])
    assert both.layers[1].prefix.tokens["keys"].shape[0] == 60 + 7, "no row is filled up to the longest"
    for row, one in enumerate([early.select([0]), early.select([1]), None, late.select([0]), late.select([1]), other]):
        if one is not None:
            compare.memories(both.select([row]), one)


def test_rows_of_unequal_length_are_saved_whole_and_come_back(hybrid, tokens, compare, tmp_path):
    memory = hybrid.read(tokens(3, 40), tappable=True).tap(torch.tensor([[1, 40], [7, 7], [39, 2]]))
    memory = hybrid.read(tokens(6, 3), memory).memory
    memory.save(tmp_path / "m.safetensors")
    loaded = Memory.load(tmp_path / "m.safetensors")
    compare.memories(loaded, memory)
    following = tokens(6, 4, seed=7)
    compare.tensors(hybrid.read(following, loaded).hidden, hybrid.read(following, memory).hidden)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": None}, "lacks count"),
        ({"count": torch.tensor([2, 6])}, r"\[2, 6\] tokens"),
        ({"values": torch.ones(2, 4, 2, 8)}, "does not fit"),
        ({"count": torch.tensor([1])}, "does not fit"),
    ],
)
def test_tensors_that_are_no_memory_of_attention_are_refused(change, message):
    held = {"keys": torch.ones(2, 5, 2, 8), "values": torch.ones(2, 5, 2, 8), "count": torch.tensor([5, 3])}
    tensors = {name: x for name, x in {**held, **change}.items() if x is not None}
    with pytest.raises(ModelError, match=message):
        AttentionMemory.from_tensors(tensors)


def test_a_window_keeps_no_more_than_it_sees(build, tokens):
    config = {**HYBRID, "attn": {"layers": [1], "num_heads": 4, "window_size": 9}}
    model, memory = build(config, torch.float32), None
    for length in (200, 1, 1, 3, 1):
        with torch.no_grad():
            memory = model.read(tokens(2, length), memory).memory
        layer = memory.layers[1]
        assert layer.counts == (8, 8)
        stored = [part.tokens["keys"].shape[0] for part in (layer.prefix, layer.own)]
        assert sum(stored) <= 2 * 2 * (8 + 3), "the text that was read can be freed"


def test_new_tokens_follow_those_of_their_row_whatever_else_the_tensors_hold():
    layout, new = Layout([2, 1]), {"x": torch.tensor([7.0, 8.0, 9.0])}
    for length in (6, 10):  # two layers of one read, the same ranges
        spans = Spans({"x": torch.arange(float(length))}, [(1, 3), (5, 6)]).extended(layout, new)
        assert spans.tokens["x"].tolist() == [1, 2, 7, 8, 5, 9] and spans.ranges == ((0, 4), (4, 6))
    assert Spans({"x": torch.ones(3)}, [(1, 1), (0, 0)]).extended(layout, new).tokens["x"] is new["x"]


def test_spans_that_are_trimmed_share_as_before():
    values = torch.arange(100.0)
    spans = Spans({"x": values}, [(3, 6), (50, 50), (4, 9), (90, 95), (3, 6)])
    trimmed = spans.trimmed()
    assert trimmed.tokens["x"].tolist() == [3, 4, 5, 6, 7, 8, 90, 91, 92, 93, 94]
    assert trimmed.counts == spans.counts and spans.nbytes == trimmed.nbytes == 11 * 4
    for (a, b), (c, d) in zip(spans.ranges, trimmed.ranges, strict=True):
        assert torch.equal(trimmed.tokens["x"][c:d], values[a:b])
    assert trimmed.trimmed() is trimmed
