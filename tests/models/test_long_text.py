"""A text read piece by piece leaves the memory and the last state of one read, and says how far it is."""

import pytest
import torch

from refine.errors import ModelError
from refine.models import Memory, read_in_pieces


@pytest.mark.parametrize("piece", [1, 7, 64, 150])
def test_pieces_of_any_length_are_one_read(model, tokens, compare, piece):
    text = tokens(2, 131)
    whole = model.read(text)
    seen = []
    memory, last = read_in_pieces(model, text, piece=piece, each=seen.append)
    compare.memories(memory, whole.memory)
    compare.tensors(last, whole.hidden[:, -1])
    assert seen == [*range(piece, 131, piece), 131]


def test_a_text_is_read_on_after_a_memory(model, tokens, compare):
    text = tokens(1, 90)
    first, _ = read_in_pieces(model, text[:, :50], piece=20)
    memory, _ = read_in_pieces(model, text[:, 50:], first, piece=20)
    compare.memories(memory, model.read(text).memory)


def test_nothing_to_read_is_refused(name, configs, build, tokens):
    model = build(configs[name])
    with pytest.raises(ModelError, match="0 tokens"):
        read_in_pieces(model, tokens(1, 9)[:, :0])
    with pytest.raises(ModelError, match="piece of 1 token or more, not 9 tokens and 0"):
        read_in_pieces(model, tokens(1, 9), piece=0)


def test_a_memory_of_other_weights_is_refused_with_both_hashes(name, configs, build, tokens, tmp_path, compare):
    memory, _ = read_in_pieces(build(configs[name]), tokens(1, 9))
    memory.save(tmp_path / "m", weights="aa11")
    with pytest.raises(ModelError, match=r"/m: is what a model with other weights read .*aa11.*bb22"):
        Memory.load(tmp_path / "m", weights="bb22")
    compare.memories(Memory.load(tmp_path / "m", weights="aa11"), Memory.load(tmp_path / "m"))
    memory.save(tmp_path / "m")  # a memory that does not say which weights read it fits all of its shape
    assert torch.equal(Memory.load(tmp_path / "m", weights="bb22").positions, memory.positions)
