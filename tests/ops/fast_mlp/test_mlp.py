"""LaCT's fast MLP in chunks (mlp.py, read.py, schedule.py) is its token-by-token twin: outputs, states, gradients."""

import pytest
import torch
from torch.nn.functional import normalize

from refine.ops.fast_mlp import mlp as fast_weight_mlp
from refine.ops.fast_mlp import read as fast_weight_read
from refine.ops.fast_mlp.mlp import Rule
from refine.ops.fast_mlp.schedule import Schedule, pending_after
from refine.ops.layout import Layout
from tests.fixtures.launches import Launches
from tests.fixtures.pretended_device import Watch, elsewhere

CHUNK = 5
HEADS, WIDTH, INNER = 2, 6, 9
RULES = {
    "plain": Rule(CHUNK),
    "momentum": Rule(CHUNK, momentum=True),
    "muon": Rule(CHUNK, muon=True),
    "prenorm": Rule(CHUNK, prenorm=True),
    "all": Rule(CHUNK, momentum=True, muon=True, prenorm=True),
    "chunks of one token": Rule(1, momentum=True),
}
LENGTHS = [[1], [2], [3], [CHUNK - 1], [CHUNK], [CHUNK + 1], [23], [11, 11], [1, 2, CHUNK, CHUNK + 1, 17, 3 * CHUNK]]


def draw(tokens, rule, dtype=torch.float64):
    """w0, w1, w2, queries and what an update needs of `tokens` tokens; rates so large that every update matters."""
    generator = torch.Generator().manual_seed(tokens)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    w0, w2 = (normal(HEADS, INNER, WIDTH) * WIDTH**-0.5 for _ in range(2))
    w1 = normal(HEADS, WIDTH, INNER) * INNER**-0.5
    q, k, v = (normalize(normal(tokens, HEADS, WIDTH), dim=-1) for _ in range(3))
    wide = torch.promote_types(dtype, torch.float32)
    held = {"keys": k, "values": v, "rates": normal(tokens, HEADS, 3).to(wide).sigmoid() * 0.3}
    if rule.momentum:
        held["carry"] = normal(tokens, HEADS).to(wide).sigmoid()
    return (w0, w1, w2), q, held


def in_chunks(weights, q, held, lengths, rule):
    """f(q), and the state after each document."""
    layout, first = Layout(lengths), fast_weight_mlp.initial_state(*weights, rule)
    schedule = Schedule(layout, [0] * len(lengths), rule.chunk_size)
    norms = fast_weight_mlp.row_norms(first)
    out, states = fast_weight_read.read(q, held, first, [0] * len(lengths), schedule, rule, norms)
    state, which = states.at(range(len(lengths)), lengths)
    return out, {name: x[list(which)] for name, x in state.items()}


def token_by_token(weights, q, held, lengths, rule):
    outs, states, at = [], [], 0
    for n in lengths:
        part = {name: x[at : at + n] for name, x in held.items()}
        out, state, pending = fast_weight_mlp.by_token(*weights, q[at : at + n], part, rule)
        assert pending == pending_after(n, rule.chunk_size)
        outs.append(out)
        states.append(state)
        at += n
    return torch.cat(outs), fast_weight_read.join(states)


def distance(a, b):
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / (b.norm() if b.any() else 1))


def loss(out, state):
    """A scalar in which every output and every state counts, each differently."""
    total = 0.0
    for x in (out, *state.values()):
        x = x.double()
        total = total + (x * torch.arange(x.numel(), dtype=torch.float64).view(x.shape).sin()).sum()
    return total


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["float64", "float32"]
)
def test_chunks_agree_with_token_by_token_in_output_state_and_gradient(kind, lengths, dtype, bound):
    rule = RULES[kind]
    weights, q, held = draw(sum(lengths), rule, dtype)
    leaves = [x.requires_grad_() for x in (*weights, q, *held.values())]
    out, state = in_chunks(weights, q, held, lengths, rule)
    expected, expected_state = token_by_token(weights, q, held, lengths, rule)
    assert out.dtype == dtype and distance(out, expected) <= bound
    assert state.keys() == expected_state.keys()
    for name in state:
        assert state[name].dtype == dtype and distance(state[name], expected_state[name]) <= bound, name
    grads = torch.autograd.grad(loss(out, state), leaves, allow_unused=True)
    for got, wanted in zip(
        grads, torch.autograd.grad(loss(expected, expected_state), leaves, allow_unused=True), strict=True
    ):
        assert (got is None or not got.any()) if wanted is None else distance(got, wanted) <= bound


@pytest.mark.parametrize("kind", RULES)
def test_bfloat16_tokens_move_float32_states_within_their_rounding(kind):
    rule = RULES[kind]
    weights, q, held = draw(23, rule, torch.bfloat16)
    out, state = in_chunks(weights, q, held, [23], rule)
    exact = [x.double() for x in weights], q.double(), {name: x.double() for name, x in held.items()}
    expected, expected_state = token_by_token(*exact, [23], rule)
    assert out.dtype == torch.bfloat16 and all(x.dtype == torch.float32 for x in state.values())
    assert distance(out, expected) < 0.05
    for name in ("gates", "out"):
        assert distance(state[name], expected_state[name]) < 0.05


def test_muon_in_bfloat16_as_published_is_near_the_exact_one_where_that_is_well_conditioned():
    chunk = 40
    rule = Rule(chunk, muon=True, muon_dtype=torch.bfloat16)
    weights, q, held = draw(2 * chunk + 1, rule)
    _, state = in_chunks(weights, q, held, [2 * chunk + 1], rule)
    _, expected = in_chunks(weights, q, held, [2 * chunk + 1], Rule(chunk, muon=True))
    first = fast_weight_mlp.initial_state(*weights, rule)
    for name in state:
        assert 0 < distance(state[name], expected[name]) < 0.1 * distance(first[name], expected[name])


def test_a_complete_chunk_moves_the_weights_only_when_a_next_token_comes():
    rule = RULES["momentum"]
    weights, q, held = draw(CHUNK + 1, rule)
    first = fast_weight_mlp.initial_state(*weights, rule)
    whole = {name: x[:CHUNK] for name, x in held.items()}
    _, complete = in_chunks(weights, q[:CHUNK], whole, [CHUNK], rule)
    assert all(torch.equal(complete[name], first[name]) for name in first)
    _, moved = in_chunks(weights, q, held, [CHUNK + 1], rule)
    assert all(not torch.equal(moved[name], first[name]) for name in first)


def test_every_token_of_a_chunk_is_read_with_the_weights_from_before_it():
    rule = RULES["plain"]
    weights, q, held = draw(2 * CHUNK, rule)
    out, _ = in_chunks(weights, q, held, [2 * CHUNK], rule)
    other = {
        name: torch.where(torch.arange(2 * CHUNK).view(-1, *[1] * (x.dim() - 1)) < CHUNK, x, 0 * x)
        for name, x in held.items()
    }
    assert torch.equal(in_chunks(weights, q, other, [2 * CHUNK], rule)[0], out), "the last chunk's keys are not yet in"
    third = q.clone()
    third[CHUNK:] = q[:CHUNK]
    again, _ = in_chunks(weights, third, held, [2 * CHUNK], rule)
    assert torch.equal(again[:CHUNK], out[:CHUNK]) and distance(again[CHUNK:], again[:CHUNK]) > 1e-3


@pytest.mark.parametrize("prenorm", [False, True])
def test_rows_keep_the_norm_they_began_with(prenorm):
    rule = Rule(CHUNK, momentum=True, prenorm=prenorm)
    weights, q, held = draw(43, rule)
    first = fast_weight_mlp.initial_state(*weights, rule)
    _, state = in_chunks(weights, q, held, [43], rule)
    norms, initial = fast_weight_mlp.row_norms(state), fast_weight_mlp.row_norms(first)
    for name in norms:
        torch.testing.assert_close(norms[name], initial[name], rtol=1e-4, atol=0)  # w / (‖w‖ + 1e-5) · ‖w_init‖
    if prenorm:
        assert distance(state["gates_sum"], first["gates"]) > distance(state["gates"], first["gates"]) > 0


def test_a_document_goes_on_in_the_middle_of_its_chunk_with_shared_states():
    """Rows that continue different documents from different phases, two of them from one state, read as the whole."""
    rule = RULES["all"]
    starts, more = [3, 5, 6, 13], 7
    whole = [draw(n + more, rule) for n in starts]
    weights = whole[0][0]
    states, pending, queries, expected = [], [], [], []
    for (_, q, held), n in zip(whole, starts, strict=True):
        part = {name: x[:n] for name, x in held.items()}
        out, _ = in_chunks(weights, q, held, [n + more], rule)
        expected.append(out[n:])
        _, state = in_chunks(weights, q[:n], part, [n], rule)
        states.append(state)
        pending.append(pending_after(n, CHUNK))
        queries.append(q[n:])
    layout = Layout([more] * len(starts))
    schedule = Schedule(layout, pending, CHUNK)
    laid = [
        {name: x[n - p :] for name, x in held.items()}
        for (_, _, held), n, p in zip(whole, starts, pending, strict=True)
    ]
    held = {name: torch.cat([part[name] for part in laid]) for name in laid[0]}
    norms = fast_weight_mlp.row_norms(fast_weight_mlp.initial_state(*weights, rule))
    # the documents of 3 and 5 tokens are in their first chunk, so they share the initial state
    joined = fast_weight_read.join([states[3], states[0], states[2]])
    out, _ = fast_weight_read.read(torch.cat(queries), held, joined, [1, 1, 2, 0], schedule, rule, norms)
    assert distance(out, torch.cat(expected)) <= 1e-10


def test_a_short_read_lays_out_only_the_documents_that_close_a_chunk():
    schedule = Schedule(Layout([2, 2, 2]), [1, 4, 5], CHUNK, crossing_only=True)
    assert schedule.laid_out == [1, 2]
    assert schedule.updates == (0, 1, 1)
    assert [schedule.segment(2, u) for u in range(2)] == [(0, 0), (0, 2)]


@pytest.mark.parametrize("kind", RULES)
def test_on_a_device_an_update_moves_square_weights_together_and_as_apart(kind):
    rule = RULES[kind]
    generator = torch.Generator().manual_seed(1)
    first = [torch.randn(2, 7, 7, generator=generator, dtype=torch.float64) for _ in range(3)]
    held = {"keys": (3, 5, 2, 7), "values": (3, 5, 2, 7), "rates": (3, 5, 2, 3), "carry": (3, 5, 2)}
    tokens = {name: torch.rand(*shape, generator=generator, dtype=torch.float64) for name, shape in held.items()}
    state = fast_weight_mlp.initial_state(*first, rule)
    norms = fast_weight_mlp.row_norms(state)
    state = {name: x.expand(3, *x.shape[1:]) + 0.1 * i for i, (name, x) in enumerate(state.items())}
    found = {}
    for where in (elsewhere, lambda x: x):
        here, given, fixed = (
            {name: where(x.detach().clone()).requires_grad_() for name, x in part.items()}
            for part in (state, tokens, norms)
        )
        with Watch(), Launches() as launches:
            after = fast_weight_mlp.update(here, given, fixed, rule)
            leaves = [*here.values(), *given.values(), *fixed.values()]
            signs = [where(torch.arange(x.numel(), dtype=torch.float64).sin().view(x.shape)) for x in after.values()]
            total = sum((x * sign).sum() for x, sign in zip(after.values(), signs, strict=True))
            gradients = torch.autograd.grad(total, leaves, allow_unused=True)
        found[where] = after, gradients, launches.total
    (after, gradients, few), (wanted, expected, many) = found.values()
    assert after.keys() == wanted.keys() and few <= (many / 2 if rule.muon else many - 12)
    for name, x in after.items():
        torch.testing.assert_close(x.as_subclass(torch.Tensor), wanted[name], rtol=1e-12, atol=1e-12)
    for got, want in zip(gradients, expected, strict=True):
        assert (got is None) == (want is None)
        if got is not None:
            torch.testing.assert_close(got.as_subclass(torch.Tensor), want, rtol=1e-8, atol=1e-9)
