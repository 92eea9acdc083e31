"""Window attention in blocks and through flex_attention is plain masked attention, whatever was remembered before."""

import pytest
import torch

from refine.errors import SettingError
from refine.ops.attention import window as window_attention
from refine.ops.layout import Layout

HEADS, WIDTH = 2, 8
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-5}
# documents of a read, and how many tokens each has in memory, as a function of the window
READS = {
    "one token": ([1], lambda w: [0]),
    "three tokens": ([3], lambda w: [0]),
    "window": ([64], lambda w: [0]),
    "many blocks": ([331], lambda w: [0]),
    "many blocks after a memory": ([331], lambda w: [w - 1]),
    "batch after a short memory": ([130, 130, 130], lambda w: [w // 2] * 3),
    "packed": ([1, 5, 200, 64, 33], lambda w: [0] * 5),
    "packed after memories": ([1, 5, 200, 64, 33], lambda w: [w - 1, 0, w // 2, w - 1, 0]),
}


def draw(lengths, before, dtype, device="cpu", grad=True):
    torch.manual_seed(0)
    new, every = sum(lengths), sum(lengths) + sum(before)
    return [torch.randn(n, HEADS, WIDTH, dtype=dtype, device=device).requires_grad_(grad) for n in (new, every, every)]


def distance(a, b):
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    return float((a - b).norm() / (b.norm() if b.any() else 1))


def test_plain_attention_is_the_formula():
    (q, k, v), window = draw([6], [3], torch.float64), 4
    out = window_attention.attend(q, k, v, Layout([6]), [3], window, "plain")
    for t in range(6):
        seen = slice(max(0, 3 + t - window + 1), 3 + t + 1)
        for h in range(HEADS):
            weights = torch.softmax(k[seen, h] @ q[t, h] / WIDTH**0.5, 0)
            torch.testing.assert_close(out[t, h], weights @ v[seen, h])


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("window", [2, 7, 33, 64, 200])
@pytest.mark.parametrize("read", READS)
def test_blocks_are_plain_attention_with_its_gradients(read, window, dtype):
    lengths, remembered = READS[read]
    before = remembered(window)
    inputs = draw(lengths, before, dtype)
    results = []
    for method in ("plain", "blocks"):
        out = window_attention.attend(*inputs, Layout(lengths), before, window, method)
        weights = torch.arange(out.numel(), dtype=dtype).sin().view(out.shape)
        results.append((out, *torch.autograd.grad((out * weights).sum(), inputs)))
    for expected, got in zip(*results, strict=True):
        assert distance(got, expected) <= BOUNDS[dtype] or (got - expected).abs().max() < 1e-12


def test_a_window_of_one_token_is_that_tokens_value():
    q, k, v = draw([70], [0], torch.float64)
    torch.testing.assert_close(window_attention.attend(q, k, v, Layout([70]), [0], 1, "blocks"), v)


@pytest.mark.parametrize("read", READS)
def test_flex_attention_sees_the_same_tokens(read):
    """Uncompiled on the CPU, where torch has its forward pass only."""
    lengths, remembered = READS[read]
    before = remembered(33)
    inputs = draw(lengths, before, torch.float32, grad=False)
    plain, flex = (window_attention.attend(*inputs, Layout(lengths), before, 33, m) for m in ("plain", "flex"))
    assert distance(flex, plain) <= 1e-5


def test_bfloat16_agrees_within_its_rounding():
    inputs = draw([331], [20], torch.bfloat16)
    out = window_attention.attend(*inputs, Layout([331]), [20], 64)
    exact = window_attention.attend(*(x.double() for x in inputs), Layout([331]), [20], 64, "plain")
    assert out.dtype == torch.bfloat16 and distance(out, exact) < 0.01


@pytest.mark.parametrize("lengths", [[4096], [96, 4000]], ids=str)
def test_scores_of_all_pairs_are_never_held(lengths):
    """No tensor of the read, masks included, has more than tokens × (window + block) elements a head."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            outputs = result if isinstance(result, (tuple, list)) else [result]
            largest = max([largest, *(x.numel() for x in outputs if isinstance(x, torch.Tensor))])
            return result

    window = 64
    inputs = draw(lengths, [0] * len(lengths), torch.float32)
    with Watch():
        out = window_attention.attend(*inputs, Layout(lengths), [0] * len(lengths), window, "blocks")
        out.sum().backward()
    assert largest <= 4200 * max(2 * window, 4 * HEADS * WIDTH) < 4096 * 4096 / 30


def test_a_block_keeps_no_copy_of_the_keys_that_it_shares_with_others():
    """For the backward pass: the inputs, the output, its normaliser and the masks, not a window for each block."""
    window, inputs = 256, draw([2048], [0], torch.float32)
    kept = {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = (x.untyped_storage().nbytes(), x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = window_attention.attend(*inputs, Layout([2048]), [0], window, "blocks")
    text, masks = inputs[0].nbytes, 256 * 256 + 64 * 320 * 4
    assert out.nbytes == text and sum(size for size, _ in kept.values()) < 6 * text + masks


def test_the_way_is_chosen_by_capability_and_can_be_forced(monkeypatch):
    inputs = draw([331], [0], torch.float32)

    def attend(wish):
        monkeypatch.setenv("REFINE_WINDOW_ATTENTION", wish)
        return window_attention.attend(*inputs, Layout([331]), [0], 33)

    assert torch.equal(attend("auto"), attend("blocks"))
    assert torch.equal(attend("plain"), window_attention.attend(*inputs, Layout([331]), [0], 33, "plain"))
    with pytest.raises(
        SettingError, match=r"REFINE_WINDOW_ATTENTION is 'flex', but the model is on cpu.*use auto or blocks"
    ):
        attend("flex")
    with pytest.raises(SettingError, match="REFINE_WINDOW_ATTENTION is 'flash': expected auto, blocks, flex, plain"):
        attend("flash")


def dtypes_of(count):
    """A function and `count` arguments that torch compiles into as many graphs."""
    kinds = [(torch.float32,), (torch.float64,), (torch.int64,), (torch.int32,), (torch.bool,), (torch.float16,)]
    shapes = [(3,), (3, 3), (3, 3, 3)]
    return [torch.ones(shape, dtype=dtype) for shape in shapes for (dtype,) in kinds][:count]


@pytest.fixture
def eager(monkeypatch):
    """torch.compile without a C++ compiler; nothing that was compiled is remembered."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_(function, backend="eager", **options))
    window_attention._compiled.cache_clear()
    yield
    window_attention._compiled.cache_clear()
    torch._dynamo.reset()


def test_more_than_eight_graphs_are_compiled(eager):
    """torch allows 8 of one function, and then runs flex_attention uncompiled without an error."""

    def twice(x):
        uncompiled.append(not torch.compiler.is_compiling())
        return x + x

    uncompiled = []
    for x in dtypes_of(12):
        assert torch.equal(window_attention._compiled(twice)(x), x + x)
    assert not any(uncompiled)


def test_beyond_the_limit_it_is_an_error_and_never_uncompiled(eager, monkeypatch):
    monkeypatch.setattr(window_attention, "GRAPHS", 3)
    run = window_attention._compiled(lambda x: x + x)
    *allowed, last = dtypes_of(4)
    for x in allowed:
        run(x)
    with pytest.raises(SettingError, match=r"compiled 3 times.* set REFINE_WINDOW_ATTENTION=blocks"):
        run(last)
    assert torch._dynamo.config.recompile_limit == 8 and not torch._dynamo.config.fail_on_recompile_limit_hit


@pytest.mark.filterwarnings("error::DeprecationWarning")
def test_on_cuda_mask_and_attention_are_compiled_without_what_torch_deprecates(monkeypatch):
    """With torch's functions uncompiled in the compiled ones' place, on a pretended device."""
    inputs, asked = draw([70], [0], torch.float32, grad=False), []

    def compiled(function):
        asked.append(function.__name__)
        return lambda *args, **more: function(*args, **{k: "cpu" if k == "device" else v for k, v in more.items()})

    monkeypatch.setattr(window_attention, "_compiled", compiled)
    plain = window_attention.attend(*inputs, Layout([70]), [0], 33, "plain")
    flex = window_attention._flex(*(OnCuda(x[None]) for x in inputs), Layout([70]), None, 33)[0]
    assert asked == ["create_block_mask", "flex_attention"]
    assert distance(flex, plain) <= 1e-5


class OnCuda:
    """A tensor on the CPU that says it is on a CUDA device."""

    device = torch.device("cuda")

    def __init__(self, x):
        self.shape, self.transpose = x.shape, x.transpose


@pytest.mark.requires_cuda
@pytest.mark.parametrize("method", ["flex", "blocks"])
@pytest.mark.parametrize("read", READS)
def test_on_cuda_every_way_is_plain_attention_with_its_gradients(read, method):
    lengths, remembered = READS[read]
    window = 64
    before = remembered(window)
    torch.manual_seed(0)
    sizes = [sum(lengths)] + [sum(lengths) + sum(before)] * 2
    inputs = [torch.randn(n, 2, 64, device="cuda", requires_grad=True) for n in sizes]
    results = []
    for way in ("plain", method):
        out = window_attention.attend(*inputs, Layout(lengths, device="cuda"), before, window, way)
        weights = torch.arange(out.numel(), device="cuda").float().sin().view(out.shape)
        results.append((out, *torch.autograd.grad((out * weights).sum(), inputs)))
    for expected, got in zip(*results, strict=True):
        assert distance(got, expected) < 2e-3  # tensor cores round float32 to tf32
