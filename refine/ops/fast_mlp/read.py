"""Reading with fast weights that move: the loop over chunks, and the states between them.

Shape legend: N tokens · G documents · A documents at one step · P states · M pending and new tokens · H fast heads
· K width of a fast head · R rows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from refine.ops.fast_mlp.mlp import Rule, State, Tokens, apply, update
from refine.ops.fast_mlp.schedule import Schedule
from refine.ops.layout import on_device
from refine.ops.row_groups import Groups


def pick(state: State, rows: Sequence[int]) -> State:
    """The states rows[0], rows[1], ... with gradient; `state` itself if these are all of them in order."""
    held = state["out"]
    if list(rows) == list(range(held.shape[0])):
        return state
    first = rows[0] if rows else 0
    if list(rows) == list(range(first, first + len(rows))):  # without an index that would be a copy to the device
        return {name: x[first : first + len(rows)].clone() for name, x in state.items()}
    index = on_device(rows, held.device)
    return {name: x.index_select(0, index) for name, x in state.items()}


def join(states: Sequence[State]) -> State:
    """All states one after the other."""
    return states[0] if len(states) == 1 else {name: torch.cat([state[name] for state in states]) for name in states[0]}


class States:
    """The states of a read. At step 0 document g has state shared[g] of `first`; later each document has its own.

    `kept`: the steps whose states are kept (None: all).
    """

    def __init__(self, schedule: Schedule, first: State, shared: Sequence[int], kept: Collection[int] | None) -> None:
        self.schedule = schedule
        self.shared = tuple(shared)
        self._kept = kept
        self._by_step: dict[int, State] = {}
        self.put(0, first)

    def put(self, step: int, state: State) -> None:
        """Keep the states of `step`, rows in the schedule's order."""
        if self._kept is None or step in self._kept:
            self._by_step[step] = state

    def at(self, documents: Sequence[int], counts: Sequence[int]) -> tuple[State, tuple[int, ...]]:
        """The distinct states after counts[r] tokens of document documents[r], and which of them row r has."""
        plan, place = self.schedule, {g: a for a, g in enumerate(self.schedule.order)}
        wanted = []
        for g, n in zip(documents, counts, strict=True):
            step = (plan.pending[g] + n - 1) // plan.size
            wanted.append((step, place[g] if step else self.shared[g]))
        distinct = sorted(set(wanted))
        parts = []
        for step in sorted({step for step, _ in distinct}):
            parts.append(pick(self._by_step[step], [row for s, row in distinct if s == step]))
        number = {key: i for i, key in enumerate(distinct)}
        return join(parts), tuple(number[key] for key in wanted)


def read(
    queries: Tensor,
    tokens: Tokens | None,
    first: State,
    shared: Sequence[int],
    schedule: Schedule,
    rule: Rule,
    norms: State,
    kept: Collection[int] | None = None,
) -> tuple[Tensor, States]:
    """Read documents with fast weights: queries [N, H, K] -> f(q) [N, H, K], and the states of the read.

    `tokens` [M, ...]: pending and new tokens of the documents that the schedule lays out (None where no chunk closes).
    `first`: the states from which the documents start, document g from state shared[g]. `norms` as in `update`.
    """
    states = States(schedule, first, shared, kept)
    chunks = schedule.chunks(tokens) if tokens is not None else []
    parts = schedule.queries(queries)
    outputs = [_apply_shared(first, [shared[g] for g in schedule.order], parts[0], schedule)]
    state = first
    for u, chunk in enumerate(chunks):
        documents = schedule.order[: schedule.active[u + 1]]
        if u == 0:
            state = state if state["out"].shape[0] == 1 else pick(state, [shared[g] for g in documents])
        elif len(documents) < state["out"].shape[0]:
            state = {name: x[: len(documents)] for name, x in state.items()}
        state = update(state, chunk, norms, rule)
        states.put(u + 1, state)
        outputs.append(apply(state, parts[u + 1]))
    return schedule.outputs(outputs), states


def _apply_shared(state: State, shared: Sequence[int], queries: Tensor, schedule: Schedule) -> Tensor:
    """f(q) for queries [A, n, H, K] of documents that may share states: one product for each state."""
    if queries.shape[1] == 0:
        return queries
    groups = schedule.layout.once(("states", tuple(shared)), lambda: Groups(shared, queries.device))
    together = groups.gather(queries)  # [D, size, n, H, K]
    read = apply(pick(state, groups.distinct), together.flatten(1, 2))
    return groups.scatter(read.unflatten(1, together.shape[1:3]))
