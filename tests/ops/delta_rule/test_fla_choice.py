"""When flash-linear-attention's kernels are chosen (refine.ops.delta_rule.fla): by device, versions and dtypes, on a
CUDA device that is pretended."""

import logging
import sys
from types import ModuleType

import pytest
import torch
from packaging.version import Version

import refine.models
from refine.errors import SettingError
from refine.ops.delta_rule import fla


def test_the_choice_is_by_capability_can_be_forced_and_is_logged_once(monkeypatch, caplog):
    monkeypatch.setattr(fla, "_version", lambda package: Version("0.6.0"))
    fla._choice.cache_clear()
    cpu = torch.device("cpu")
    monkeypatch.delenv("REFINE_KERNELS", raising=False)
    with caplog.at_level(logging.INFO, logger="refine.ops.delta_rule.fla"):
        assert not fla.chosen(cpu, torch.bfloat16) and not fla.chosen(cpu, torch.bfloat16)
    assert [record.getMessage() for record in caplog.records] == ["delta rule on cpu in torch.bfloat16: PyTorch"]
    monkeypatch.setenv("REFINE_KERNELS", "fla")
    with pytest.raises(SettingError, match="REFINE_KERNELS is 'fla', but the model is on cpu"):
        fla.chosen(cpu, torch.bfloat16)
    monkeypatch.setattr(fla.importlib.util, "find_spec", lambda name: object())
    assert fla.chosen(torch.device("cuda"), torch.bfloat16)
    with pytest.raises(SettingError, match=r"activations are torch\.float32"):
        fla.chosen(torch.device("cuda"), torch.float32)
    monkeypatch.setenv("REFINE_KERNELS", "torch")
    assert not fla.chosen(torch.device("cuda"), torch.bfloat16)
    monkeypatch.setenv("REFINE_KERNELS", "triton")
    with pytest.raises(SettingError, match="expected auto, torch or fla"):
        fla.chosen(cpu, torch.bfloat16)
    fla._choice.cache_clear()


def _pretend(monkeypatch, triton="3.7.1", capability=(9, 0), packages=("fla", "triton")):
    """A CUDA device and these packages, as far as the choice looks."""
    versions = {"triton": triton, "fla-core": "0.6.0"}
    monkeypatch.setattr(fla, "_version", lambda package: Version(versions[package]))
    monkeypatch.setattr(fla.importlib.util, "find_spec", lambda name: object() if name in packages else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    for cached in (fla._choice, fla._differentiates):
        cached.cache_clear()


@pytest.fixture
def forgetful():
    """Afterwards, no choice of the test is remembered."""
    yield
    for cached in (fla._choice, fla._differentiates):
        cached.cache_clear()


@pytest.mark.parametrize("kind", ["delta_net", "gated_deltanet", "kda"])
def test_under_autocast_the_kernels_read_what_the_projections_are_made_in(
    calls, passes_made, monkeypatch, forgetful, kind
):
    """The residual stream is float32, and REFINE_KERNELS=fla would refuse it."""
    config = {"model_type": kind, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2, "vocab_size": 50}
    model = refine.models.from_config(config | ({"head_dim": 16} if kind != "delta_net" else {}))
    text, results = torch.randint(0, 50, (2, 70)), []
    _pretend(monkeypatch)
    for wish in ("torch", "fla"):
        monkeypatch.setenv("REFINE_KERNELS", wish)
        monkeypatch.setattr(fla, "chosen", lambda device, dtype, wish=wish: fla._choice(wish, "cuda", dtype))
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.read(text).hidden
        results.append([hidden, *torch.autograd.grad(hidden.square().sum(), list(model.model.parameters()))])
    assert calls and passes_made
    for one, other in zip(*results, strict=True):
        assert float((one - other).double().norm() / other.double().norm().clamp(min=1e-2)) < 5e-2
    with pytest.raises(SettingError, match=r"activations are torch\.float32"):
        model.read(text)


HOPPER = [("3.6.0", (9, 0), (), False), ("3.4", (9, 0), (), False), ("3.7.1", (9, 0), (), True)]
HOPPER += [("3.3.1", (9, 0), (), True), ("3.6.0", (10, 0), (), True)]
HOPPER += [("3.6.0", (9, 0), ("tilelang",), False), ("3.6.0", (9, 0), ("tilelang", "nvcc"), True)]


@pytest.mark.parametrize(("triton", "capability", "more", "expected"), HOPPER, ids=str)
def test_the_gated_backward_pass_that_hopper_gets_wrong_goes_to_pytorch(
    monkeypatch, forgetful, caplog, triton, capability, more, expected
):
    if more:
        backends = pytest.importorskip("fla.backends")
        monkeypatch.setattr(backends, "find_spec_cached", lambda name: object())
        monkeypatch.setattr(backends, "has_usable_nvcc", lambda: "nvcc" in more)
        monkeypatch.setenv("FLA_TILELANG", "1")
    _pretend(monkeypatch, triton, capability, ("fla", "triton", *more))
    monkeypatch.delenv("REFINE_KERNELS", raising=False)
    device = torch.device("cuda", 0)
    with caplog.at_level(logging.WARNING, logger="refine.ops.delta_rule.fla"):
        assert [fla.differentiates(device, 64) for _ in range(3)] == [expected] * 3
    said = [record.getMessage() for record in caplog.records]
    assert said == [] if expected else ["3.7.1 or later" in line and triton in line for line in said] == [True]
    monkeypatch.setenv("REFINE_KERNELS", "fla")
    if not expected:
        with pytest.raises(SettingError, match=r"heads of 64 key channels .* install tilelang"):
            fla.differentiates(device, 64)


def test_a_decay_for_each_channel_has_rules_of_its_own(monkeypatch, forgetful):
    """Its gradients are not proven where those of the gated kernels are wrong, for heads of any width."""
    device, decay = torch.device("cuda", 0), torch.zeros(3, 2, 128)
    q = torch.zeros(3, 2, 128, requires_grad=True)
    for version, right in (("3.6.0", False), ("3.7.1", True)):
        _pretend(monkeypatch, version)
        monkeypatch.setenv("REFINE_KERNELS", "auto")
        assert fla.reads(device, torch.bfloat16, decay, q) is right
        assert fla.reads(device, torch.bfloat16, decay, q.detach()), "without gradients"
        monkeypatch.setenv("REFINE_KERNELS", "fla")
        if not right:
            with pytest.raises(SettingError, match=r"a decay for each key channel are not proven right there"):
                fla.reads(device, torch.bfloat16, decay, q)
    wide = torch.zeros(3, 2, 257)
    with pytest.raises(SettingError, match="each of a head's 257 key channels read at most 256: use auto or torch"):
        fla.reads(device, torch.bfloat16, wide, wide)
    assert fla.reads(device, torch.bfloat16, wide[..., 0], wide), "the gated kernels have no such limit"
    monkeypatch.setenv("REFINE_KERNELS", "auto")
    assert not fla.reads(device, torch.bfloat16, wide, wide)


@pytest.mark.parametrize("gradient", [False, True])
def test_a_gated_model_reads_by_kernels_and_learns_by_pytorch_there(calls, monkeypatch, forgetful, gradient):
    _pretend(monkeypatch, "3.6.0")
    monkeypatch.setattr(fla, "chosen", lambda device, dtype: True)
    config = {"model_type": "gated_deltanet", "hidden_size": 32, "num_hidden_layers": 1, "num_heads": 2}
    model = refine.models.from_config(config | {"head_dim": 16, "vocab_size": 50})
    with torch.set_grad_enabled(gradient):
        model.read(torch.randint(0, 50, (1, 70)))
    assert bool(calls) is not gradient


def test_the_refusal_is_lifted_for_wide_heads_alone(monkeypatch, forgetful):
    kernel, caller = ModuleType("fla.ops.common.chunk_o"), ModuleType("fla.ops.gated_delta_rule.chunk")
    kernel.TRITON_ABOVE_3_7_1 = False

    def chunk_bwd_dqkwg(q, k):
        if not kernel.TRITON_ABOVE_3_7_1:
            raise RuntimeError("refused")
        return k.shape[-1]

    caller.chunk_bwd_dqkwg = chunk_bwd_dqkwg
    for name in ("fla", "fla.ops", "fla.ops.common", "fla.ops.gated_delta_rule"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for module in (kernel, caller):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    _pretend(monkeypatch, "3.6.0")
    fla._lift_refusal.cache_clear()
    assert fla.differentiates(torch.device("cuda", 0), 128)
    assert caller.chunk_bwd_dqkwg(q=None, k=torch.zeros(1, 128)) == 128
    with pytest.raises(RuntimeError, match="refused"):
        caller.chunk_bwd_dqkwg(q=None, k=torch.zeros(1, 64))
    assert caller.chunk_bwd_dqkwg(None, torch.zeros(1, 65)) == 65
    assert kernel.TRITON_ABOVE_3_7_1 is False
    fla._lift_refusal.cache_clear()


def test_an_older_fla_is_not_used(monkeypatch, forgetful):
    _pretend(monkeypatch)
    monkeypatch.setattr(fla, "_version", lambda package: Version("0.5.1"))
    assert fla.lacking() == "fla-core is 0.5.1, and the kernels need 0.6.0 or later"
    monkeypatch.setenv("REFINE_KERNELS", "fla")
    with pytest.raises(SettingError, match=r"fla-core is 0\.5\.1"):
        fla.chosen(torch.device("cuda"), torch.bfloat16)


@pytest.mark.slow
@pytest.mark.requires_fla
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_fla_refuses_as_expected_and_lets_itself_be_lifted(monkeypatch):
    """With fla's own code: the names that are replaced exist, and the guard lies where it is looked for."""
    import fla.ops.common.chunk_o as kernel
    import fla.ops.gated_delta_rule.chunk as caller

    monkeypatch.setattr(kernel, "IS_NVIDIA_HOPPER", True)
    monkeypatch.setattr(kernel, "TRITON_ABOVE_3_4_0", True)
    monkeypatch.setattr(kernel, "TRITON_ABOVE_3_7_1", False)
    monkeypatch.setattr(caller, "chunk_bwd_dqkwg", caller.chunk_bwd_dqkwg)
    fla._lift_refusal.cache_clear()
    fla._lift_refusal()
    for width, refused in ((64, True), (128, False)):
        x = torch.zeros(1, 64, 1, width, dtype=torch.bfloat16)
        with pytest.raises(Exception) as error:  # without a GPU both fail, at different places
            caller.chunk_bwd_dqkwg(q=x, k=x, v=x, do=x, h=x, dh=x, g=torch.zeros(1, 64, 1))
        assert ("incorrect results" in str(error.value)) is refused
    fla._lift_refusal.cache_clear()
