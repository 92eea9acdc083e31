"""All segments of a read in one call: the passes from step to step with plain functions in fla's place, and fla's own
code under Triton's interpreter, against the twin and counted."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest
import torch

from refine.errors import SettingError
from refine.ops.delta_rule import fla_segments
from refine.ops.delta_rule.fla_segments import StatePass
from refine.ops.delta_rule.segments import CHUNK, Steps

CPU = torch.device("cpu")
LENGTHS = [[128, 128, 70], [128, 128], [44]]  # of documents of 300, 256 and 70 tokens, read in segments of 128


def _documents(x, cuts):
    return list(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True))


def _forward(k, w, u, initial_state, output_final_state, cu_seqlens, chunk_indices, chunk_offsets):
    """The pass over the states: h before every chunk, what each token writes, and the last states."""
    starts, values, after = [], torch.empty_like(u), []
    for row, (first, end) in enumerate(_documents(k, cu_seqlens)):
        state = initial_state[row]
        for at in range(first, end, CHUNK):
            here = slice(at, min(at + CHUNK, end))
            starts.append(state)
            values[0, here] = u[0, here] - torch.einsum("thk,hkv->thv", w[0, here], state)
            state = state + torch.einsum("thk,thv->hkv", k[0, here], values[0, here])
        after.append(state)
    return torch.stack(starts)[None], values, torch.stack(after) if output_final_state else None


def _backward(q, k, w, do, dv, h0, dht, scale, cu_seqlens, chunk_indices, chunk_offsets):
    """The pass over their gradients: those after every chunk, of the first states, and of what each token writes."""
    ends, dvalues, before = [], torch.empty_like(dv), []
    for row, (first, end) in enumerate(_documents(k, cu_seqlens)):
        d, of_document = dht[row], []
        for at in reversed(range(first, end, CHUNK)):
            here = slice(at, min(at + CHUNK, end))
            of_document.append(d)
            dvalues[0, here] = dv[0, here] + torch.einsum("thk,hkv->thv", k[0, here], d)
            d = d + scale * torch.einsum("thk,thv->hkv", q[0, here], do[0, here])
            d = d - torch.einsum("thk,thv->hkv", w[0, here], dvalues[0, here])
        ends += of_document[::-1]
        before.append(d)
    return torch.stack(ends)[None], torch.stack(before), dvalues


def test_step_by_step_the_passes_are_those_over_a_whole_document_to_the_last_bit():
    torch.manual_seed(0)
    q, k, w, u, do, dv = (torch.randn(1, 300, 2, 8, dtype=torch.float64) for _ in range(6))
    first, last = (torch.randn(1, 2, 8, 8, dtype=torch.float64) for _ in range(2))
    steps, whole = Steps.of([[128], [128], [44]], CPU), Steps.of([[300]], CPU).cuts
    passing, given = StatePass(steps), {"k": k, "w": w, "u": u, "initial_state": first, "output_final_state": True}
    cuts = {"cu_seqlens": steps.cuts.cu_seqlens, "chunk_indices": steps.cuts.chunk_indices}
    h, values, after = passing.forward(_forward, **given, **cuts)
    expected = _forward(**given, **vars(whole))
    assert all(torch.equal(x, y) for x, y in zip((h, values, after), expected, strict=True))
    starts = torch.cat(passing.starts)
    assert torch.equal(starts, h[0, ::2])
    # a gradient of a tapped state is one that arrives there: at the end of the step before
    dstarts = torch.zeros(3, 2, 8, 8, dtype=torch.float64)
    dstarts[1] = last[0]
    given = {"q": q, "k": k, "w": w, "do": do, "dv": dv, "scale": 0.5}
    dh, dfirst, dvalues = passing.backward(_backward, **given, h0=starts, dht=dstarts, **cuts)
    parts = [slice(0, 128), slice(128, 300)]
    none = torch.zeros_like(last)
    late = _backward(**{n: x if n == "scale" else x[:, parts[1]] for n, x in given.items()}, h0=starts[1:2], dht=none,
                     **vars(Steps.of([[172]], CPU).cuts))  # fmt: skip
    early = _backward(**{n: x if n == "scale" else x[:, parts[0]] for n, x in given.items()}, h0=first,
                      dht=late[1] + last, **vars(Steps.of([[128]], CPU).cuts))  # fmt: skip
    assert torch.equal(dfirst, early[1]) and torch.equal(dh, torch.cat([early[0], late[0]], 1))
    assert torch.equal(dvalues, torch.cat([early[2], late[2]], 1))


def test_the_backward_pass_starts_from_all_states_at_once():
    made = []
    passing = StatePass(Steps.of(LENGTHS, CPU))
    passing.forward(lambda **given: made.append(given), initial_state="all", output_final_state=False)
    assert [given["initial_state"] for given in made] == ["all"] and FORWARD not in passing.done


FORWARD = fla_segments.FORWARD


def test_a_read_that_did_not_go_through_the_steps_is_an_error(monkeypatch):
    def other(q, v, initial_state, **more):
        return v, torch.zeros(1), initial_state

    monkeypatch.setattr(fla_segments, "_functions", lambda decay: (other, other))
    x = torch.zeros(6, 1, 4)
    with pytest.raises(SettingError, match=f"without {FORWARD}: set REFINE_SEGMENTS=apart, or install fla-core"):
        fla_segments.read([x, x, x, x[..., 0], None], torch.zeros(1, 1, 4, 4), Steps.of([[3], [3]], CPU))


@pytest.fixture
def undecided():
    """No choice is remembered, before and after."""
    fla_segments._wanted.cache_clear()
    yield
    fla_segments._wanted.cache_clear()


def test_the_twin_can_be_asked_for(monkeypatch, undecided):
    monkeypatch.setattr(fla_segments, "_unknown", lambda: None)
    monkeypatch.delenv("REFINE_SEGMENTS", raising=False)
    assert fla_segments.wanted()
    monkeypatch.setenv("REFINE_SEGMENTS", "apart")
    assert not fla_segments.wanted()
    monkeypatch.setenv("REFINE_SEGMENTS", "one")
    with pytest.raises(SettingError, match="REFINE_SEGMENTS is 'one': expected together or apart"):
        fla_segments.wanted()


def test_with_another_fla_segments_are_read_one_by_one_and_it_says_so(monkeypatch, undecided, caplog):
    class Module:
        chunk_delta_rule_fwd = None

    monkeypatch.setattr(fla_segments.importlib, "import_module", lambda name: Module)
    monkeypatch.delenv("REFINE_SEGMENTS", raising=False)
    with caplog.at_level(logging.WARNING, logger="refine.ops.delta_rule.fla_segments"):
        assert not fla_segments.wanted() and not fla_segments.wanted()
    assert [record.getMessage() for record in caplog.records] == [
        "delta rule: one call of the kernels for each segment, which is slower, because fla.ops.delta_rule.chunk has "
        "no chunk_delta_rule_fwd that calls chunk_gated_delta_rule_fwd_h"
    ]


INTERPRETED = """
import sys
from tests.fixtures import interpreted_kernels
import torch
from refine.ops.delta_rule import fla, fla_segments, rule
from refine.ops.layout import Layout, Taps
from tests.ops.delta_rule.test_fla import _compared, _inputs
decay = {"none": False, "head": True, "channel": "channel"}[sys.argv[1]]
lengths = [9, 20]
inputs = _inputs(lengths, decay, 2, torch.float16)
read = []
original = fla_segments._Segments.apply
fla_segments._Segments.apply = lambda *given: read.append(1) or original(*given)
_compared(inputs, lengths, [(0, 6), (1, 17), (1, 8)], 8, 1e-2)
assert read == [1]
print("the same")
"""

COUNTED = """
import json, os
from tests.fixtures import interpreted_kernels
import torch
from refine.ops.delta_rule import fla
from refine.ops.layout import Layout, Taps
tokens, found = 16384, {}
for decay in ("none", "head", "channel"):
    for taps in (8, 64):
        for os.environ["REFINE_SEGMENTS"] in ("together", "apart"):
            shape = (tokens, 1, 16)
            q, k, v = (torch.zeros(shape, dtype=torch.float16, requires_grad=True) for _ in range(3))
            beta = torch.zeros(tokens, 1, requires_grad=True)
            g = None if decay == "none" else torch.zeros(shape if decay == "channel" else shape[:2], requires_grad=True)
            with interpreted_kernels.count() as launched:
                o, states = fla.read(q, k, v, beta, g, None, Layout([tokens]))
                tapped = states.at(Taps([0] * taps, [(i + 1) * (tokens // taps) - 3 for i in range(taps)]))
                (o.float().sum() + tapped.sum()).backward()
            found[f"{decay} {taps} {os.environ['REFINE_SEGMENTS']}"] = sum(launched.values())
print(json.dumps(found))
"""


def _interpreted(script, *arguments, **environment):
    command = [sys.executable, "-W", "ignore", "-c", script, *arguments]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.requires_fla
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("decay", ["none", "head", "channel"])
def test_outputs_tapped_states_and_gradients_are_the_twin_s_under_triton_s_interpreter(decay):
    assert _interpreted(INTERPRETED, decay) == "the same"


@pytest.mark.slow
@pytest.mark.requires_fla
@pytest.mark.timeout(1800)
def test_a_long_text_takes_few_launches_whatever_is_tapped():
    """One layer's delta rule at 16,384 tokens, forward and backward: 32 steps of two launches, and each other once."""
    found = json.loads(_interpreted(COUNTED))
    assert len(found) == 12
    for decay in ("none", "head", "channel"):
        for taps in (8, 64):
            together, apart = (found[f"{decay} {taps} {way}"] for way in ("together", "apart"))
            assert together < 120 and apart > 32 * 9, found
        assert found[f"{decay} 8 together"] == found[f"{decay} 64 together"]
