"""Shards hold the model and the optimizer bit for bit, as safetensors and JSON. With two processes and FSDP2:
tests/training/test_torchrun.py."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors import safe_open

from refine.errors import ModelError, TrainingError
from refine.models import from_config
from refine.models.weights import weight_files
from refine.paths import SHARDS
from refine.training import checkpoints, sharded
from tests.fixtures.training import CONFIG


def join() -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)


@pytest.fixture(autouse=True)
def group():
    """A process group of this process alone."""
    join()
    yield
    torch.distributed.destroy_process_group()


def made(seed: int, steps: int, **more):
    """A model, and an optimizer that has made `steps` steps."""
    torch.manual_seed(seed)
    model = from_config({**CONFIG, "vocab_size": 64, **more})
    parts = [list(model.parameters())[:3], list(model.parameters())[3:]]
    optimizer = torch.optim.AdamW(
        [{"params": parts[0], "weight_decay": 0.0}, {"params": parts[1]}], lr=1e-2 / (seed + 1)
    )
    for _ in range(steps):
        model.read(torch.arange(20)[None]).hidden.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


@pytest.mark.parametrize("tied", [False, True])
def test_model_and_optimizer_come_back_to_the_same_bits(tmp_path, tied, monkeypatch):
    monkeypatch.setattr(sharded, "FILE_BYTES", 4096)
    model, optimizer = made(0, 2, tie_word_embeddings=tied)
    listed = sharded.save(tmp_path, model, optimizer)
    other, after = made(1, 0, tie_word_embeddings=tied)
    sharded.load(tmp_path, other, after)
    assert tied or len(optimizer.state) == len(after.state) < len(list(model.parameters())), "lm_head had no gradient"
    for (name, one), two in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    first, second = optimizer.state_dict(), after.state_dict()
    assert first["param_groups"] == second["param_groups"]
    for number, state in first["state"].items():
        assert all(torch.equal(value, second["state"][number][key]) for key, value in state.items())
    files = sorted(path.name for path in (tmp_path / SHARDS).iterdir())
    assert len(listed) > 2 and files == [sharded.GROUPS, *(name.removeprefix("shards/") for name in sorted(listed))]
    assert all(name.endswith((".safetensors", ".json")) for name in files)
    assert all(found == checkpoints.entry(tmp_path / name) for name, found in listed.items())


def test_tied_tensors_are_stored_once(tmp_path):
    sharded.save(tmp_path, made(0, 0, tie_word_embeddings=True)[0], None)
    (file,) = (tmp_path / SHARDS).iterdir()
    with safe_open(file, "pt") as held:
        names = list(held.keys())
    assert len([name for name in names if "embed" in name or "lm_head" in name]) == 1


def test_the_model_is_read_without_its_optimizer_and_without_a_process_group(tmp_path):
    model, optimizer = made(0, 1)
    sharded.save(tmp_path, model, optimizer)
    other, after = made(1, 0)
    torch.distributed.destroy_process_group()
    with warnings.catch_warnings(action="error"):
        sharded.load(tmp_path, other)
    join()
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))
    assert not after.state


def test_shards_of_another_model_or_optimizer_are_refused_in_one_line(tmp_path):
    sharded.save(tmp_path, *made(0, 1))
    wider, _ = made(0, 0, intermediate_size=48)
    with pytest.raises(TrainingError, match=r"shards: does not fit this model and optimizer") as error:
        sharded.load(tmp_path, wider)
    assert "\n" not in str(error.value)
    model, optimizer = made(0, 0)
    groups = tmp_path / SHARDS / sharded.GROUPS
    held = json.loads(groups.read_text())
    held["groups"][0]["params"].pop()
    groups.write_text(json.dumps(held))
    with pytest.raises(TrainingError, match=r"optimizer\.json"):
        sharded.load(tmp_path, model, optimizer)
    groups.unlink()
    with pytest.raises(TrainingError, match=r"optimizer\.json: is missing"):
        sharded.load(tmp_path, model, optimizer)


def test_a_checkpoint_in_parts_is_no_model_folder(tmp_path):
    sharded.save(tmp_path, made(0, 0)[0], None)
    (tmp_path / "scheduler.pt").touch()
    with pytest.raises(ModelError, match="is a checkpoint in parts, which only a training reads"):
        weight_files(tmp_path)


def test_parameters_are_measured():
    model, _ = made(0, 0)
    assert sharded.parameter_bytes(model) == 4 * model.num_parameters()
