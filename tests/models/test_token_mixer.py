"""The contract of a layer: memories, traces, every way to keep a read (more in test_reading.py, test_tapping.py)."""

import pytest
import torch
from torch import Tensor

from refine.errors import ModelError
from refine.models.token_mixer import EndsOnly, Keep, LayerMemory, TensorMemory, at_least_float32
from refine.ops.layout import Layout, Taps


def test_a_trace_of_ends_gives_them_in_any_order_and_itself_where_all_are_asked_for():
    layout, held = Layout([3, 1, 2]), TensorMemory({"state": torch.arange(6.0).view(3, 2)})
    trace = EndsOnly(held, Taps.ends(layout))
    assert trace.tap(Taps.ends(layout), None) is held, "a step of decoding copies nothing"
    assert trace.tap(Taps.ends(layout, [2, 0, 2]), None).tensors()["state"].tolist() == [[4, 5], [0, 1], [4, 5]]


def test_rows_of_one_state_share_it_and_a_row_left_behind_is_freed():
    state = torch.arange(6.0).view(3, 2)
    held = TensorMemory({"state": state})
    repeated = held.repeat(4)
    assert repeated.rows == 12 and repeated.nbytes == held.nbytes == 24, "nothing is copied"
    assert repeated.map(Tensor.detach).repeat(2)._held["state"].data_ptr() == state.data_ptr()
    assert torch.equal(repeated.tensors()["state"], state.repeat_interleave(4, 0))
    last = repeated.select(torch.tensor([11, 4, 10]))
    assert last.nbytes == 16 and last.tensors()["state"].tolist() == [[4, 5], [2, 3], [4, 5]]
    joined = TensorMemory.cat([last, held])
    assert joined.nbytes == 40 and joined["state"].tolist() == [[4, 5], [2, 3], [4, 5], *state.tolist()]


def test_tensors_of_unequal_rows_are_no_memory():
    with pytest.raises(ModelError, match=r"same number of rows, not .*\(2, 1\)"):
        TensorMemory.from_tensors({"state": torch.ones(3, 1), "q": torch.ones(2, 1)})


def test_states_are_at_least_float32():
    wide = {torch.bfloat16: torch.float32, torch.float32: torch.float32, torch.float64: torch.float64}
    assert {dtype: at_least_float32(dtype) for dtype in wide} == wide


@pytest.fixture
def layer(model):
    """The first token mixer of each kind of model, and inputs for three documents."""
    torch.manual_seed(0)
    return model.model.layers[0].mixer, torch.randn(30, 32, dtype=model.dtype), Layout([3, 22, 5])


def test_every_way_to_keep_a_read_gives_the_same_ends(layer, compare):
    mixer, x, layout = layer
    outputs, ends = [], []
    for keep in Keep:
        y, trace = mixer(x, layout, None, keep)
        outputs.append(y)
        ends.append(trace.tap(Taps.ends(layout), x.__getitem__ if keep is Keep.SPARSE else None).tensors())
    for y, held in zip(outputs[1:], ends[1:], strict=True):
        compare.tensors(y, outputs[0])
        for name, tensor in held.items():
            compare.tensors(tensor, ends[0][name], name)


def test_a_layers_memory_is_saved_under_its_kind_and_comes_back(layer):
    mixer, x, layout = layer
    memory = mixer(x, layout, None, Keep.ALL)[1].tap(Taps.ends(layout), None)
    again = LayerMemory.kinds[type(memory).__name__].from_tensors(memory.tensors())
    assert again.rows == memory.rows == 3
    joined = type(memory).cat([memory.select(torch.tensor([1])), memory.repeat(2)])
    for name, tensor in joined.tensors().items():
        held = again.tensors()[name]
        assert torch.equal(tensor, held[torch.tensor([1, 0, 0, 1, 1, 2, 2])]), name


def test_a_fresh_memory_is_that_of_a_read_without_one(layer, compare):
    mixer, x, layout = layer
    fresh = mixer.fresh(3, x.device, x.dtype)
    compare.tensors(mixer(x, layout, fresh, Keep.ENDS)[0], mixer(x, layout, None, Keep.ENDS)[0])
