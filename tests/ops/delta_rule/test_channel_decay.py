"""A decay for each key channel (channel_decay.py, decay.py): the chunks are the token-by-token twin, however strong it
is, and where rows share their state; no token changes an earlier one."""

import pytest
import torch

from refine.ops.delta_rule import rule
from refine.ops.delta_rule.channel_decay import SUB_CHUNK, ChannelDecay, Pairs, factors_of
from refine.ops.delta_rule.decay import Decay, sum_after, sum_before
from refine.ops.layout import Ends, Layout, Taps
from refine.ops.rms_norm import unit_length

BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-5}
LENGTHS = [[1], [5, 5, 5], [SUB_CHUNK + 1], [63], [65], [1, 200, 64, 3, 65]]
NAMES = ("q", "k", "v", "beta", "log_decay", "state")


def inputs(lengths, dtype, strong=False, groups=1, heads=2, key=7, value=6):
    made = torch.Generator().manual_seed(sum(lengths))

    def normal(*shape):
        return torch.randn(*shape, generator=made, dtype=torch.float64)

    total, values = sum(lengths), heads * groups
    decay = -torch.rand(total, values, key, generator=made, dtype=torch.float64)
    if strong:
        decay[torch.rand(decay.shape, generator=made) < 0.1] = -60.0
    beta = 2 * torch.rand(total, values, generator=made, dtype=torch.float64)
    found = [
        unit_length(normal(total, heads, key)),
        unit_length(normal(total, heads, key)),
        normal(total, values, value),
    ]
    found += [beta, decay, normal(len(lengths), values, key, value)]
    return [x.to(dtype).requires_grad_() for x in found]


def by_twin(given, lengths, taps):
    """Outputs and tapped states, in float64."""
    q, k, v, beta, decay, state = given
    q, k = (x.repeat_interleave(v.shape[1] // x.shape[1], 1) for x in (q, k))
    outputs, states, at = [], [], 0
    for g, n in enumerate(lengths):
        part = [x[None, at : at + n] for x in (q, k, v, beta, decay)]
        o, after = rule.token_by_token(*part, None if state is None else state[g : g + 1])
        outputs.append(o[0])
        states.append(after[0])
        at += n
    return torch.cat(outputs), torch.stack([states[g][n - 1] for g, n in taps])


def distance(a, b):
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm().clamp(min=1e-2))


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize(("strong", "groups"), [(False, 1), (True, 2)], ids=["mild", "-60 in places, grouped values"])
@pytest.mark.parametrize("with_state", [True, False], ids=["from a state", "fresh"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_chunks_are_the_twin(lengths, with_state, strong, groups, dtype):
    taps = [(g, n) for g, length in enumerate(lengths) for n in {1, (length + 1) // 2, length}] * 2
    found, exact = inputs(lengths, dtype, strong, groups), inputs(lengths, torch.float64, strong, groups)
    used = len(found) if with_state else len(found) - 1
    results = []
    for given, read in ((found, True), (exact, False)):
        state = given[5] if with_state else None
        if read:
            o, states = rule.read(*given[:5], state, Layout(lengths))
            tapped = states.at(Taps(*zip(*taps, strict=True)))
        else:
            o, tapped = by_twin([*given[:5], state], lengths, taps)
        weights = (torch.arange(x.numel()).sin().view(x.shape).to(x.dtype) for x in (o, tapped))
        loss = sum((x * weight).sum() for x, weight in zip((o, tapped), weights, strict=True))
        results.append([o, tapped, *torch.autograd.grad(loss, given[:used])])
    for name, one, other in zip(("o", "taps", *NAMES), *results, strict=False):
        assert one.isfinite().all() and distance(one, other) < BOUNDS[dtype], name


def test_gradients_that_come_through_states_alone_or_outputs_alone_are_right():
    given = inputs([70], torch.float64)
    expected = by_twin(given, [70], [(0, 66)])
    o, states = rule.read(*given, Layout([70]))
    for ours, twin in zip((o, states.at(Taps([0], [66]))), expected, strict=True):
        for one, other in zip(
            torch.autograd.grad(ours.square().sum(), given, retain_graph=True, allow_unused=True),
            torch.autograd.grad(twin.square().sum(), given, retain_graph=True, allow_unused=True),
            strict=True,
        ):
            one = torch.zeros_like(other) if one is None and other is not None else one
            other = torch.zeros_like(one) if other is None and one is not None else other
            assert distance(one, other) < 1e-10


def test_one_number_for_all_channels_is_the_decay_of_a_head():
    q, k, v, beta, decay, state = inputs([90], torch.float64)
    decay = decay[..., :1].detach()
    one, _ = rule.read(q, k, v, beta, decay.expand(-1, -1, 7), state, Layout([90]))
    other, _ = rule.read(q, k, v, beta, decay[..., 0], state, Layout([90]))
    assert distance(one, other) < 1e-12


@pytest.mark.parametrize("place", [0, 15, 16, 40, 63, 64, 69])
def test_no_token_changes_a_bit_of_an_earlier_one(place):
    """fla-org/flash-linear-attention#1240, #1242: gates of later tokens moved outputs and gradients of earlier ones."""
    results = []
    for change in (False, True):
        given = inputs([70], torch.float32, strong=True)
        with torch.no_grad():
            for x in given[:5] if change else ():
                x[place:] *= 0.3
        o, _ = rule.read(*given, Layout([70]))
        results.append([o[:place], *(x[:place] for x in torch.autograd.grad(o[:place].sum(), given[:5]))])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("tokens", [1, 7, 64, 70])
def test_documents_that_share_a_state_read_as_with_a_state_each(tokens, dtype):
    rows, sharing = 6, 3
    layout, taps = Layout([tokens] * rows), Taps(list(range(rows)), [1 + g % tokens for g in range(rows)])
    results = []
    for shared in (True, False):
        *given, states = inputs([tokens] * rows, dtype)
        states = states.detach()[:2].requires_grad_()
        laid_out = states if shared else states.repeat_interleave(sharing, 0)
        o, after = rule.read(*given, laid_out, layout, sharing if shared else 1)
        tapped = after.at(taps)
        loss = o.square().sum() + tapped.sin().sum() + after.at(Taps.ends(layout)).cos().sum()
        results.append([o, tapped, *torch.autograd.grad(loss, [*given, states])])
    *equal, (one, other) = zip(*results, strict=True)
    assert all(torch.equal(a, b) for a, b in equal[:2])
    assert all(distance(a, b) < BOUNDS[dtype] / 10 for a, b in [*equal, (one, other)])


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_a_step_of_decoding_is_the_twin(dtype):
    given, exact = inputs([1] * 4, dtype, True, 2), inputs([1] * 4, torch.float64, True, 2)
    kept = given[5].detach().clone()
    with torch.no_grad():
        o, states = rule.read(*given, Layout([1] * 4))
    expected, after = by_twin(exact, [1] * 4, [(3, 1), (0, 1)])
    assert isinstance(states, Ends) and torch.equal(given[5], kept)
    assert distance(o, expected) < BOUNDS[dtype] and distance(states.at(Taps([3, 0], [1, 1])), after) < BOUNDS[dtype]


def test_a_chunk_is_worked_on_in_parts_that_fit_a_cache(monkeypatch):
    from refine.ops.delta_rule import channel_decay

    given = inputs([130, 20], torch.float64)
    whole, _ = rule.read(*given, Layout([130, 20]))
    expected = torch.autograd.grad(whole.square().sum(), given)
    monkeypatch.setitem(channel_decay.FORMED, "cpu", 1)
    assert len(list(ChannelDecay(torch.zeros(3, 40, 7))._parts())) == 3 * 3
    parts, _ = rule.read(*given, Layout([130, 20]))
    found = torch.autograd.grad(parts.square().sum(), given)
    assert all(distance(a, b) < 1e-14 for a, b in zip([parts, *found], [whole, *expected], strict=True))


@pytest.mark.parametrize("size", [1, 2, SUB_CHUNK])
def test_the_decay_between_two_tokens_is_summed_up_alike_on_cpu_and_gpu(size):
    decay = torch.randn(3, size, 5, dtype=torch.float64)
    pairs = Pairs.of(size, decay)
    expected = [decay[:, j + 1 : i + 1].sum(1) for i, j in zip(pairs.later, pairs.earlier, strict=True)]
    for sums in (pairs.sums(decay), pairs.running_sums(decay)):
        torch.testing.assert_close(sums, torch.stack(expected, 1))


def test_the_decay_of_a_few_tokens_is_exact_after_much():
    """The difference of two sums would have the rounding of -900."""
    decay = torch.full((1, SUB_CHUNK, 1), -60.0)
    decay[:, -3:] = -0.001
    [scores] = [ChannelDecay(decay).scores(torch.ones(1, SUB_CHUNK, 1), torch.ones(1, SUB_CHUNK, 1))]
    torch.testing.assert_close(scores[0, -1, -3], torch.tensor(-0.002).exp(), rtol=1e-7, atol=0)


def test_factors_are_chosen_by_the_form_of_the_decay():
    assert type(factors_of(None)) is Decay and type(factors_of(torch.zeros(2, 5))) is Decay
    assert type(factors_of(torch.zeros(2, 5, 3))) is ChannelDecay


def test_sums_of_later_and_earlier_elements():
    x = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    assert sum_after(x).tolist() == [[6, 4, 0], [48, 32, 0]] and sum_before(x).tolist() == [[0, 1, 3], [0, 8, 24]]
    assert sum_after(x, 0).tolist() == [[8, 16, 32], [0, 0, 0]] and sum_before(x, 0).tolist() == [[0, 0, 0], [1, 2, 4]]


@pytest.mark.requires_fla
@pytest.mark.filterwarnings("ignore")
def test_the_twin_is_flash_linear_attentions_own():
    from fla.ops.kda.naive import naive_recurrent_kda

    q, k, v, beta, decay, state = (x.detach() for x in inputs([40], torch.float32, groups=2))
    o, last = naive_recurrent_kda(*(x[None] for x in (q, k, v, decay, beta)), None, state, True)
    q, k = (x.repeat_interleave(2, 1) for x in (q, k))
    ours, states = rule.token_by_token(*(x[None] for x in (q, k, v, beta, decay)), state)
    assert distance(ours, o) < 1e-6 and distance(states[:, -1], last) < 1e-6
