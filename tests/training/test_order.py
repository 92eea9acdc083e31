"""Every sequence counts once, whatever the batch size and the number of processes. Nested steps:
tests/phases/test_post.py."""

from __future__ import annotations

from collections import Counter

import pytest

from refine.training.order import STAND_IN, Passes, Stream, derived_seed, sequence_seed


def test_every_row_counts_once_an_epoch_whatever_the_step_size():
    stream = Stream(rows=7, sequences=21, per_step=4, seed=3)
    steps = [stream.taken(step) for step in range(stream.steps)]
    assert [len(step) for step in steps] == [4, 4, 4, 4, 4, 1]
    assert Counter(row for step in steps for row in step) == dict.fromkeys(range(7), 3)
    flat = [row for step in steps for row in step]
    assert sorted(flat[:7]) == sorted(flat[7:14]) == list(range(7)) and flat[:7] != flat[7:14]


def test_the_order_depends_only_on_the_seed():
    one, again, other = (Stream(50, 50, 5, seed) for seed in (1, 1, 2))
    assert one.taken(0) == again.taken(0) != other.taken(0)
    assert Stream(50, 50, 5, None).taken(1) == [5, 6, 7, 8, 9]
    assert one.taken(0) == [44, 48, 30, 33, 9], "the order of a seed is pinned: a change breaks every resumed run"


@pytest.mark.parametrize("per_pass", [1, 2, 3, 8])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_batch_sizes_and_processes_do_not_change_what_a_step_sees(per_pass, processes):
    stream = Stream(rows=11, sequences=26, per_step=6, seed=0)
    lists = [list(Passes(stream, per_pass, processes, process)) for process in range(processes)]
    for step in range(stream.steps):
        passes = [one for process in lists for one in process[step]]
        seen = [row for one in passes for row in one.rows]
        assert Counter(row for row in seen if row != STAND_IN) == Counter(stream.taken(step))
        assert all(1 <= len(one.rows) <= per_pass for one in passes)
        assert len({len(process[step]) for process in lists}) == 1, "a process would wait for the others for ever"


def test_seeds_differ_by_run_step_and_sequence_and_are_pinned():
    seeds = {sequence_seed(run, step, row) for run in range(3) for step in range(20) for row in range(20)}
    assert len(seeds) == 3 * 20 * 20
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sequence_seed(1, 2, 3) != sequence_seed(12, 3, 0) and derived_seed(1, 23) != derived_seed(12, 3)
    assert sequence_seed(1, 2, 3) == 257342867357266593
