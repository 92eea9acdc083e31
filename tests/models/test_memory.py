"""A memory can be detached, selected, repeated, joined, moved, measured, saved and loaded; a wrong one is refused."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from refine.errors import ModelError
from refine.models import Memory
from refine.models.attention.latent import LatentAttention
from refine.models.attention.mixer import Attention


def test_the_bytes_of_a_memory_do_not_grow_with_the_text_but_by_keys_and_values_of_attention(model, tokens):
    sizes = [model.read(tokens(2, n)).memory.nbytes for n in (200, 300, 700)]
    attending = [block.mixer for block in model.model.layers]
    numbers = sum(2 * one.options.groups * one.options.width for one in attending if isinstance(one, Attention))
    numbers += sum(one.options.rank + one.options.shared_key for one in attending if isinstance(one, LatentAttention))
    a_token = numbers * model.dtype.itemsize
    assert [size - sizes[0] for size in sizes] == [0, 2 * 100 * a_token, 2 * 500 * a_token]
    held = model.read(tokens(2, 300)).memory
    assert held.nbytes == sum(t.numel() * t.element_size() for layer in held.layers for t in layer.tensors().values())


def test_rows_are_selected_repeated_and_joined_with_their_positions(model, tokens, compare):
    one, other = model.read(tokens(2, 9)).memory, model.read(tokens(1, 70, seed=4)).memory
    joined = Memory.cat([one, other])
    assert joined.rows == 3 and joined.positions.tolist() == [9, 9, 70]
    compare.memories(joined.select([2]), other)
    compare.memories(joined.select([-1, 0]), joined.select(torch.tensor([2, 0])))
    compare.memories(joined.select(slice(0, 2)), one)
    repeated = joined.repeat(3)
    assert repeated.positions.tolist() == [9] * 6 + [70] * 3
    compare.memories(repeated, joined.select([0, 0, 0, 1, 1, 1, 2, 2, 2]))
    with pytest.raises(ModelError, match="3 rows"):
        joined.select([3])


def test_rows_of_different_lengths_read_on_together(model, tokens, compare):
    starts = [tokens(1, n, seed=n) for n in (1, 66, 130)]
    joined = Memory.cat([model.read(start).memory for start in starts])
    following = tokens(3, 70, seed=9)
    reading = model.read(following, joined)
    for row, start in enumerate(starts):
        whole = model.read(torch.cat([start, following[row : row + 1]], 1))
        compare.tensors(reading.hidden[row], whole.hidden[0, start.shape[1] :])
        compare.memories(reading.memory.select([row]), whole.memory)


def test_detach_cuts_the_graph_and_reading_on_leaves_the_old_memory_unchanged(model, tokens, compare):
    memory = model.read(tokens(2, 66)).memory
    before = memory.detach()
    assert not any(t.requires_grad for layer in before.layers for t in layer.tensors().values())
    kept = Memory.cat([before])
    with torch.no_grad():
        reading = model.read(tokens(2, 70, seed=3), before)
        _ = reading.memory
    compare.memories(before, kept)


def test_a_saved_memory_reads_on_as_if_never_saved(model, tokens, compare, tmp_path):
    memory = model.read(tokens(2, 66)).memory
    memory.save(tmp_path / "memory.safetensors")
    loaded = Memory.load(tmp_path / "memory.safetensors")
    compare.memories(loaded, memory)
    following = tokens(2, 5, seed=3)
    assert torch.equal(model.read(following, loaded).hidden, model.read(following, memory.detach()).hidden)
    assert [path.name for path in tmp_path.iterdir()] == ["memory.safetensors"]


def test_a_memory_moves_to_another_dtype(name, configs, build, tokens):
    exact, single = build(configs[name]), build(configs[name], torch.float32)
    memory = exact.read(tokens(2, 66)).memory.to(torch.float32)
    assert memory.dtype == torch.float32
    assert all(t.dtype != torch.float64 for layer in memory.layers for t in layer.tensors().values())
    assert single.read(tokens(2, 3), memory).hidden.isfinite().all()


def _rewritten(path, header, change=lambda tensors: tensors):
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        found = file.metadata()
    save_file(change(tensors), path, metadata={**found, **header})


def test_files_that_are_no_memory_are_refused_with_their_name(name, configs, build, tokens, tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(ModelError, match=r"m\.safetensors: no such"):
        Memory.load(path)
    build(configs[name]).read(tokens(1, 3)).memory.save(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ModelError, match="damaged"):
        Memory.load(path)
    build(configs[name]).read(tokens(1, 3)).memory.save(path)
    _rewritten(path, {"version": "2"})
    with pytest.raises(ModelError, match="format 2 is newer than 1"):
        Memory.load(path)
    _rewritten(path, {"format": "pt"})
    with pytest.raises(ModelError, match="not a saved memory"):
        Memory.load(path)
    with pytest.raises(ModelError, match="damaged"):
        Memory.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held, name: {k: x for k, x in held.items() if k != name}, r"tensor {} is missing"),
        (lambda held, name: {**held, "layers.1.more": held[name].clone()}, r"tensor layers\.1\.more does not belong"),
        (lambda held, name: {**held, name: held[name][:1].clone()}, r"{} has shape \[1.*saved was \[2"),
        (lambda held, name: {k: x for k, x in held.items() if k != "positions"}, r"tensor positions is missing"),
    ],
)
def test_a_memory_file_whose_tensors_were_changed_is_refused(name, configs, build, tokens, tmp_path, change, message):
    path = tmp_path / "m.safetensors"
    memory = build(configs[name]).read(tokens(2, 30)).memory
    for tensor in memory.layers[1].tensors():
        memory.save(path)
        _rewritten(path, {}, lambda held, at=f"layers.1.{tensor}": change(held, at))
        with pytest.raises(ModelError, match=r"m\.safetensors: .*" + message.format(f"layers.1.{tensor}")):
            Memory.load(path)


def test_a_memory_that_does_not_fit_is_refused_with_the_reason(name, configs, build, tokens, with_layers):
    model = build(configs[name], torch.float32)
    memory = model.read(tokens(2, 5)).memory
    deeper = build(with_layers(configs[name], 3), torch.float32)
    with pytest.raises(ModelError, match="another model"):
        deeper.read(tokens(2, 5), memory)
    with pytest.raises(ModelError, match="2 rows, tokens has 3"):
        model.read(tokens(3, 5), memory)
    with pytest.raises(ModelError, match=r"float32, this one is in torch\.float64"):
        build(configs[name]).read(tokens(2, 5), memory)
    with pytest.raises(ModelError, match="on meta, the model on cpu"):
        model.read(tokens(2, 5), memory.to("meta"))
    with pytest.raises(ModelError, match="different models"):
        Memory.cat([memory, deeper.read(tokens(2, 5)).memory])
