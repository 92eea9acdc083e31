"""Reads of one token that are recorded once and replayed: the same as reads one by one, and the same operations each
time. What needs no GPU: the tensors that stay, with direct reads in the place of a CUDA graph."""

from __future__ import annotations

import contextlib
import copy
from types import SimpleNamespace

import pytest
import torch

from refine.errors import SettingError
from refine.models import one_token
from refine.models.one_token import OneByOne, OwnTensors, Replayed
from tests.fixtures.pretended_device import Elsewhere, Watch, elsewhere, move_model
from tests.models.configs import CONFIGS
from tests.models.conftest import make_model

STEADY = ("delta_net", "gated_deltanet", "kda", "gated_deltaproduct", "comba")
ROWS = 3


def _read(kind, dtype=torch.float32):
    model = make_model(CONFIGS[kind], dtype)
    with torch.no_grad():
        reading = model.read((torch.arange(ROWS * 9).view(ROWS, 9) * 7) % 61)
    return model, reading


def _same(one, other):
    assert one.positions.tolist() == other.positions.tolist()
    for a, b in zip(one.layers, other.layers, strict=True):
        assert a.tensors().keys() == b.tensors().keys()
        assert all(torch.equal(x, b.tensors()[name]) for name, x in a.tensors().items())


@pytest.mark.parametrize("kind", STEADY)
@torch.no_grad()
def test_reads_in_tensors_that_stay_are_those_one_by_one_to_the_last_bit(kind):
    model, reading = _read(kind)
    memory = reading.memory.select([1, 1, 0]).detach()
    own = OwnTensors(memory)
    for _ in range(2):  # another continuation finds nothing of the first
        twin, replayed = OneByOne(model, memory), Replayed(own, lambda: own.read(model), memory)
        _same(replayed.memory, memory)
        kept = [(replayed.read(tokens), twin.read(tokens)) for tokens in torch.randint(0, 61, (4, ROWS))]
        assert all(torch.equal(ours, theirs) for ours, theirs in kept), "and no later read changes them"
        _same(replayed.memory, twin.memory)
    after = replayed.memory
    before = copy.deepcopy(after.layers[0].tensors())
    replayed.read(torch.zeros(ROWS, dtype=torch.int64))
    assert all(torch.equal(x, before[name]) for name, x in after.layers[0].tensors().items())


@pytest.mark.parametrize("kind", STEADY)
@torch.no_grad()
def test_a_read_of_one_token_waits_for_nothing_and_is_the_same_operations_each_time(kind):
    class Seen(Watch):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            shapes = [tuple(x.shape) for x in args if isinstance(x, Elsewhere)]
            if shapes:
                made.append((getattr(function, "__name__", ""), shapes))
            return super().__torch_function__(function, types, args, kwargs)

    model = make_model(CONFIGS[kind], torch.float32)
    memory = model.fresh_memory(ROWS)
    move_model(model)
    memory = one_token._copied(memory)
    for layer in memory.layers:
        layer._held = {name: elsewhere(x) for name, x in layer._held.items()}
    made: list = []
    with Seen() as watch:
        own = OwnTensors(memory)
        own.read(model)
        lists = []
        for _ in range(2):
            watch.synchronisations.clear()
            watch.copies.clear()
            made.clear()
            own.read(model)
            lists.append(list(made))
            assert not watch.synchronisations and not watch.copies, (watch.synchronisations, watch.copies)
    assert lists[0] == lists[1] and len(lists[0]) > 20


@pytest.fixture
def recordable(monkeypatch):
    """As if the CPU could record: a recording is the read itself. Counts them."""
    made = []

    def capture(run, device):
        made.append(run)
        return SimpleNamespace(replay=run)

    monkeypatch.setenv("REFINE_DECODING", "auto")
    monkeypatch.setattr(one_token, "lacking", one_token.changing)
    monkeypatch.setattr(one_token, "_capture", capture)
    return made


def _continued(model, reading, monkeypatch, wish, tokens=12, rows=slice(None)):
    monkeypatch.setenv("REFINE_DECODING", wish)
    memory, hidden = reading.memory.select(rows), reading.hidden[rows, -1]
    return model.continue_sampled(memory, hidden, tokens, torch.arange(memory.rows))


@pytest.mark.parametrize("kind", STEADY)
def test_a_recorded_continuation_is_the_one_read_one_by_one(kind, recordable, monkeypatch):
    model, reading = _read(kind)
    expected = _continued(model, reading, monkeypatch, "one_by_one")
    assert not recordable
    for _ in range(2):
        found = _continued(model, reading, monkeypatch, "recorded")
        for name in ("tokens", "lengths", "log_probs", "hidden"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
        _same(found.memory, expected.memory)
    assert len(recordable) == 1, "kept for the next continuation"


def test_a_recording_is_made_again_for_other_rows_or_moved_weights_and_two_are_kept(recordable, monkeypatch):
    model, reading = _read("delta_net")
    for rows in (slice(3), slice(2), slice(3), slice(2)):
        _continued(model, reading, monkeypatch, "recorded", rows=rows)
    assert len(recordable) == 2
    weight = model.model.layers[0].mixer.q_proj.weight
    weight.data = weight.data.clone() * 2
    expected = _continued(model, reading, monkeypatch, "one_by_one")
    assert torch.equal(_continued(model, reading, monkeypatch, "recorded").hidden, expected.hidden)
    assert len(recordable) == 3 and len(one_token._made[model]) == one_token.KEPT


def test_weights_that_are_trained_in_place_need_no_new_recording(recordable, monkeypatch):
    model, reading = _read("gated_deltanet")
    _continued(model, reading, monkeypatch, "recorded")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    expected = _continued(model, reading, monkeypatch, "one_by_one")
    assert torch.equal(_continued(model, reading, monkeypatch, "recorded").hidden, expected.hidden)
    assert len(recordable) == 1


def test_a_continuation_inside_of_another_does_not_disturb_it(recordable, monkeypatch):
    model, reading = _read("delta_net")
    expected = _continued(model, reading, monkeypatch, "one_by_one")
    within = []
    monkeypatch.setenv("REFINE_DECODING", "recorded")
    memory, hidden, seeds = reading.memory, reading.hidden[:, -1], torch.arange(ROWS)

    def each(tokens):
        within.append(model.continue_sampled(memory, hidden, 12, seeds).tokens)

    for _ in range(2):
        found = model.continue_sampled(memory, hidden, 12, seeds, each=each)
        assert torch.equal(found.tokens, expected.tokens) and torch.equal(found.hidden, expected.hidden)
    assert all(torch.equal(tokens, expected.tokens) for tokens in within)
    assert not next(iter(one_token._made[model].values()))[0].in_use


def test_it_is_recorded_when_rows_come_again_or_the_continuation_is_long(recordable, monkeypatch):
    model, reading = _read("delta_net")
    for rows, tokens, made in ((3, 12, 0), (2, 12, 0), (3, 12, 0), (3, 7, 0), (3, 12, 1), (2, 12, 1), (2, 12, 2)):
        _continued(model, reading, monkeypatch, "auto", tokens=tokens, rows=slice(rows))
        assert len(recordable) == made, (rows, tokens)
    _continued(model, reading, monkeypatch, "auto", tokens=one_token.AT_ONCE, rows=slice(1))
    assert len(recordable) == 3
    _continued(model, reading, monkeypatch, "one_by_one", tokens=one_token.AT_ONCE)
    assert len(recordable) == 3


def test_a_model_and_its_recordings_go_together(recordable, monkeypatch):
    model, reading = _read("delta_net")
    _continued(model, reading, monkeypatch, "recorded")
    copy.deepcopy(model)
    assert model in one_token._made
    recordable.clear()  # this list holds the model; a CUDA graph does not
    before = len(one_token._made)
    one_token._made.pop(model)
    assert len(one_token._made) == before - 1


@pytest.mark.parametrize("kind", ["lact", "qwen3_5"])
def test_what_is_not_the_same_each_time_is_read_one_by_one_or_refused(kind, recordable, monkeypatch):
    model, reading = _read(kind)
    expected = _continued(model, reading, monkeypatch, "one_by_one")
    for _ in range(2):
        assert torch.equal(_continued(model, reading, monkeypatch, "auto").tokens, expected.tokens)
    assert not recordable
    with pytest.raises(SettingError, match=r"'recorded', but a layer's reads .* use auto or one_by_one"):
        _continued(model, reading, monkeypatch, "recorded")


def test_a_wrapped_model_is_not_recorded(recordable):
    model, reading = _read("delta_net")
    assert one_token.changing(model, reading.memory) is None
    model.model.layers[0].register_forward_pre_hook(lambda *_: None)
    assert one_token.changing(model, reading.memory) == "the model is wrapped (FSDP)"


def test_on_the_cpu_tokens_are_read_one_by_one_and_a_recording_is_refused(monkeypatch):
    model, reading = _read("delta_net")
    monkeypatch.delenv("REFINE_DECODING", raising=False)
    assert isinstance(one_token.reader(model, reading.memory, 100), OneByOne)
    with pytest.raises(SettingError, match="'recorded', but the model is on cpu, not on a CUDA device"):
        _continued(model, reading, monkeypatch, "recorded")
    with pytest.raises(SettingError, match="REFINE_DECODING is 'graph': expected auto, recorded or one_by_one"):
        _continued(model, reading, monkeypatch, "graph")


def test_a_replay_that_differs_is_an_error_if_it_was_asked_for_else_a_warning_and_is_not_kept(
    recordable, monkeypatch, caplog
):
    model, reading = _read("delta_net")
    expected, tried = _continued(model, reading, monkeypatch, "one_by_one", tokens=64), []

    def other(run, device):
        tried.append(run)
        return SimpleNamespace(replay=lambda: (run(), run.func.__self__.hidden.mul_(1.1)))

    monkeypatch.setattr(one_token, "_capture", other)
    with pytest.raises(SettingError, match=r"other states when its CUDA graph is replayed .* 1\.0e-01\) \(REFINE_DEC"):
        _continued(model, reading, monkeypatch, "recorded")
    for _ in range(2):
        found = _continued(model, reading, monkeypatch, "auto", tokens=64)
        assert torch.equal(found.tokens, expected.tokens) and torch.equal(found.hidden, expected.hidden)
        _same(found.memory, expected.memory)
    (warning,) = caplog.records
    assert "this model's tokens are read one by one, which is slower" in warning.getMessage()
    assert len(tried) == 2 and not one_token._made[model], "once asked for, and once tried"


def test_what_cuda_cannot_record_is_one_line_and_the_thread_is_back_on_its_stream(monkeypatch):
    """`torch.cuda.graph` does not leave its stream when a capture fails."""
    on = ["own"]

    class Recording:
        def __init__(self, graph, **options):
            assert options == {"stream": "new on cuda:1", "capture_error_mode": "thread_local"}

        def __enter__(self):
            on[:] = ["capture"]
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

        def __exit__(self, *_):
            return False

    @contextlib.contextmanager
    def stream(chosen):
        try:
            yield
        finally:
            on[:] = [chosen]

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"own of {device}")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"new on {device}")
    with pytest.raises(SettingError, match=r"as a CUDA graph \(operation not permitted .* capturing more\) \(REFINE"):
        one_token._capture(lambda: None, torch.device("cuda:1"))
    assert on == ["own of cuda:1"]


@pytest.mark.requires_cuda
@pytest.mark.parametrize("kind", STEADY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_a_cuda_graph_writes_the_same_tokens(kind, dtype, monkeypatch):
    model = make_model(CONFIGS[kind], torch.float32).to("cuda", dtype)
    with torch.no_grad():
        reading = model.read(torch.arange(ROWS * 9, device="cuda").view(ROWS, 9))
    expected = _continued(model, reading, monkeypatch, "one_by_one", 16)
    for _ in range(2):
        found = _continued(model, reading, monkeypatch, "recorded", 16)
        assert torch.equal(found.tokens, expected.tokens)
        assert float((found.hidden - expected.hidden).float().norm() / expected.hidden.float().norm()) < 1e-3


@pytest.mark.requires_cuda
def test_on_a_gpu_under_autocast_a_cuda_graph_sees_trained_weights(monkeypatch):
    model = make_model(CONFIGS["gated_deltanet"], torch.float32).cuda()
    for factor in (1.0, 1.1):
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            for parameter in model.parameters():
                parameter.mul_(factor)
            reading = model.read(torch.arange(ROWS * 9, device="cuda").view(ROWS, 9))
            expected = _continued(model, reading, monkeypatch, "one_by_one", 16)
            found = _continued(model, reading, monkeypatch, "recorded", 16)
        assert torch.equal(found.tokens, expected.tokens)
    assert len(one_token._made[model]) == 1
