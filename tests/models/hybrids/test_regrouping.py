"""Stored tensors become parameters and parameters stored tensors, bit for bit; incomplete groups stay as they are."""

import pytest
import torch

from refine.models.hybrids.regrouping import ExpertsApart, Interleaved

D, I, E = 4, 3, 5


def experts(names=("gate_proj", "up_proj", "down_proj")):
    """Two layers of experts that stand apart, and another tensor."""
    torch.manual_seed(0)
    shapes = dict(zip(names, ((I, D), (I, D), (D, I)), strict=True))
    apart = {
        f"model.layers.{layer}.mlp.experts.{e}.{name}.weight": torch.randn(shape)
        for layer in (0, 11)
        for e in range(E)
        for name, shape in shapes.items()
    }
    return {**apart, "model.layers.3.mlp.down_proj.weight": torch.randn(D, I)}


@pytest.mark.parametrize("names", [("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")], ids=str)
def test_experts_are_laid_together_and_apart(names):
    apart = experts(names)
    tensors, regrouping = dict(apart), ExpertsApart(E, *names)
    assert regrouping.in_use(tensors)
    regrouping.to_parameters(tensors)
    assert sorted(tensors) == [
        "model.layers.0.mlp.experts.down_proj", "model.layers.0.mlp.experts.gate_up_proj",
        "model.layers.11.mlp.experts.down_proj", "model.layers.11.mlp.experts.gate_up_proj",
        "model.layers.3.mlp.down_proj.weight",
    ]  # fmt: skip
    where = "model.layers.11.mlp.experts"
    for e in range(E):
        gate, up = tensors[f"{where}.gate_up_proj"][e].split(I)
        assert torch.equal(gate, apart[f"{where}.{e}.{names[0]}.weight"])
        assert torch.equal(up, apart[f"{where}.{e}.{names[1]}.weight"])
        assert torch.equal(tensors[f"{where}.down_proj"][e], apart[f"{where}.{e}.{names[2]}.weight"])
    assert not regrouping.in_use(tensors)
    regrouping.to_stored(tensors)
    assert tensors.keys() == apart.keys() and all(torch.equal(tensors[name], apart[name]) for name in apart)


@pytest.mark.parametrize("missing", ["experts.4.up_proj.weight", "experts.0.down_proj.weight"])
def test_experts_of_which_one_is_missing_stay(missing):
    tensors = {name: x for name, x in experts().items() if name != f"model.layers.0.mlp.{missing}"}
    given = {name for name in tensors if ".layers.0." in name}
    ExpertsApart(E).to_parameters(tensors)
    assert {name for name in tensors if ".layers.0." in name} == given
    assert "model.layers.11.mlp.experts.gate_up_proj" in tensors


def fused(heads, widths):
    """Projections of distinct rows, interleaved row by row: row r of part p of head h is 100 p + 10 h + r."""
    rows = [100 * p + 10 * h + r for h in range(heads) for p, width in enumerate(widths) for r in range(width)]
    return torch.tensor(rows, dtype=torch.float32)[:, None].expand(-1, D)


def test_interleaved_projections_are_undone_and_redone():
    whole = {"model.layers.0.linear_attn.in_proj_qkvz.weight": fused(3, (2, 2, 4, 4)), "other.weight": torch.ones(2)}
    tensors = dict(whole)
    regrouping = Interleaved("in_proj_qkvz", 3, (2, 2, 4, 4), (("in_proj_qkv", 3), ("in_proj_z", 1)))
    regrouping.to_parameters(tensors)
    prefix = "model.layers.0.linear_attn."
    assert sorted(tensors) == [f"{prefix}in_proj_qkv.weight", f"{prefix}in_proj_z.weight", "other.weight"]
    q, k = ([100 * p + 10 * h + r for h in range(3) for r in range(2)] for p in (0, 1))
    v, z = ([100 * p + 10 * h + r for h in range(3) for r in range(4)] for p in (2, 3))
    assert tensors[f"{prefix}in_proj_qkv.weight"][:, 0].tolist() == q + k + v
    assert tensors[f"{prefix}in_proj_z.weight"][:, 0].tolist() == z
    regrouping.to_stored(tensors)
    assert tensors.keys() == whole.keys() and all(torch.equal(tensors[name], whole[name]) for name in whole)


def test_projections_of_another_size_and_lone_parts_stay():
    regrouping = Interleaved("in_proj_ba", 2, (1, 1), (("in_proj_b", 1), ("in_proj_a", 1)))
    tensors = {"layer.in_proj_ba.weight": torch.ones(6, D), "x.in_proj_b.weight": torch.ones(2, D)}
    given = dict(tensors)
    regrouping.to_parameters(tensors)
    regrouping.to_stored(tensors)
    assert tensors.keys() == given.keys()
