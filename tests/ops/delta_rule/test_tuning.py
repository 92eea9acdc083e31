"""Few configurations of a kernel are tried, and which: with Triton's own classes, and with fla's kernels."""

from __future__ import annotations

import logging
import sys
from types import ModuleType

import pytest

from refine.errors import SettingError
from refine.ops.delta_rule import tuning
from refine.ops.delta_rule.tuning import FEW

triton = pytest.importorskip("triton")


def _configs(blocks=(32, 64, 128), warps=(2, 4, 8, 16), stages=(2, 3, 4)):
    return [triton.Config({"BV": b}, num_warps=w, num_stages=s) for b in blocks for w in warps for s in stages]


def test_few_are_the_likeliest_and_the_smallest_in_their_order():
    configs = _configs()
    kept = tuning.few(configs)
    assert len(kept) == FEW and [x for x in configs if x in kept] == kept
    found = [(x.kwargs["BV"], x.num_warps, x.num_stages) for x in kept]
    assert (64, 4, 3) in found and (64, 4, 2) in found and (64, 8, 3) in found
    assert (32, 16, 2) in found, "the least shared memory, and most warps to share its registers"


def test_no_more_than_there_are():
    configs = _configs((32, 64), (2, 4), (2, 3))
    assert tuning.few(configs) == configs
    assert len(tuning.few(_configs((), (), ()))) == 0


def test_kernels_without_blocks_or_with_switches_are_tried_too():
    configs = [triton.Config({"FAST": fast}, num_warps=w) for fast in (False, True) for w in (1, 2, 4, 8, 16, 32)]
    assert {x.num_warps for x in tuning.few(configs)} >= {2, 4, 8}


@pytest.fixture
def module(monkeypatch):
    """A module of fla.ops with a kernel below heuristics, which another name means too, and one elsewhere."""

    def scaled(x, BV):
        pass

    kernel = triton.autotune(_configs(), key=[])(triton.jit(scaled))
    here, elsewhere = ModuleType("fla.ops.kda.made_up"), ModuleType("fla.ops.attn.made_up")
    kernel.__class__ = type("Cached", (type(kernel),), {"__module__": "fla.ops.utils.cache"})  # as fla's own autotuner
    here.kernel = here.other = triton.heuristics({"A": lambda args: True})(kernel)
    elsewhere.kernel = triton.autotune(_configs(), key=[])(triton.jit(scaled))
    for one in (here, elsewhere):
        monkeypatch.setitem(sys.modules, one.__name__, one)
    return here.kernel.fn, elsewhere.kernel


def test_the_kernels_in_use_are_restricted_once_and_it_is_said(module, monkeypatch, caplog):
    monkeypatch.delenv("REFINE_TUNING", raising=False)
    monkeypatch.setattr(tuning, "PACKAGES", ("kda.made_up",))
    with caplog.at_level(logging.INFO, logger="refine.ops.delta_rule.tuning"):
        assert tuning.restrict() == (36, FEW) and tuning.restrict() == (FEW, FEW)
    assert [len(one.configs) for one in module] == [FEW, 36]
    assert [record.getMessage() for record in caplog.records] == [
        "flash-linear-attention's kernels: 8 of 36 configurations are tried (REFINE_TUNING=all: every one)"
    ]


def test_all_may_be_tried(module, monkeypatch):
    monkeypatch.setenv("REFINE_TUNING", "all")
    assert tuning.restrict() == (0, 0) and len(module[0].configs) == 36
    monkeypatch.setenv("REFINE_TUNING", "most")
    with pytest.raises(SettingError, match="REFINE_TUNING is 'most': expected few or all"):
        tuning.restrict()


def test_the_few_are_what_triton_times(module):
    """Its autotuner looks at what it was given at each new shape."""
    module[0].configs = tuning.few(module[0].configs)
    module[0].nargs = {}
    assert module[0].prune_configs({}) == module[0].configs and len(module[0].configs) == FEW


@pytest.mark.slow
@pytest.mark.requires_fla
def test_fla_s_own_kernels_are_found():
    from refine.ops.delta_rule import fla

    fla.kernels()
    names = {tuner.base_fn.__name__ for tuner in tuning.tuners()}
    assert names >= {
        "chunk_gated_delta_rule_fwd_kernel_h_blockdim64",
        "chunk_gated_delta_rule_bwd_kernel_dhu_blockdim64",
        "chunk_fwd_kernel_o",
        "chunk_bwd_kernel_dqkwg",
    }
    assert all(1 <= len(tuner.configs) <= FEW for tuner in tuning.tuners())
