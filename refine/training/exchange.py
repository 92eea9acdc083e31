"""The statistics of all processes as one, in one collective: each sends a row of float64 of the same length.

Nothing is pickled, and a sum over processes has the order of their ranks, so it does not depend on the collective.

Shapes: L layers with mixtures · E experts · N numbers that one process sends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from refine.models.mixture import RouterCounts, routers
from refine.objective.rewards import REWARDS
from refine.settings.objective import ObjectiveSettings, reward_kind
from refine.training.distributed import rows_of_all, several
from refine.training.statistics import SUMS, Counts, StepStatistics


@dataclass(frozen=True)
class Room:
    """How much a process may have to send. It is the same in all processes: it follows from the model, the objective
    and the counts of all processes' passes.

    values: the names of single values, and how many of each a process has at most. routers: (L, E); (0, 0) for none.
    """

    values: dict[str, int]
    routers: tuple[int, int] = (0, 0)

    @staticmethod
    def of(objective: ObjectiveSettings, rollout_tokens: int, model: nn.Module | None = None) -> Room:
        """`rollout_tokens`: the most that a process has. `model`: whose routers count; None for no routers."""
        rollouts = rollout_tokens // objective.rollout_length
        kinds = dict.fromkeys([*REWARDS, reward_kind(objective.reward)])
        values = {f"reward/{kind}": rollouts for kind in kinds}
        found = [] if model is None else routers(model)
        experts = found[0].number if found else 0
        return Room({**values, "advantages": rollouts, "ratio": rollout_tokens}, (len(found), experts))


def merged(statistics: StepStatistics, room: Room, device: Any) -> StepStatistics:
    """The statistics of all processes as one. `device`: where the processes exchange tensors."""
    if not several():
        return StepStatistics.merged([statistics])
    rows = rows_of_all(packed(statistics, room).to(device)).cpu()
    return StepStatistics.merged([unpacked(row, room) for row in rows])


def packed(statistics: StepStatistics, room: Room) -> Tensor:
    """[N] float64: the sums, each with whether there is one; the gap; single values, each list with its length and
    filled up to its room; what routers counted."""
    strange = [*(set(statistics.sums) - set(SUMS)), *(set(statistics.values) - set(room.values))]
    assert not strange, f"statistics without a place in a row: {strange}"
    sums = [number for name in SUMS for number in (name in statistics.sums, statistics.sums.get(name, 0.0))]
    parts = [torch.tensor([*sums, statistics.log_prob_gap], dtype=torch.float64)]
    for name, most in room.values.items():
        values = torch.cat([torch.zeros(0), *statistics.values.get(name, [])]).double()
        parts += [torch.tensor([float(len(values))], dtype=torch.float64), values, values.new_zeros(most - len(values))]
    layers, experts = room.routers
    counts = statistics.routing or RouterCounts(torch.zeros(layers, experts), torch.zeros(layers), 0)
    numbers = [torch.tensor([counts.tokens]), counts.load.flatten(), counts.entropy]
    return torch.cat([*parts, *(x.double().cpu() for x in numbers)])


def unpacked(row: Tensor, room: Room) -> StepStatistics:
    """The statistics that `packed` made [N] of."""
    found, (layers, experts) = StepStatistics(), room.routers
    lengths = [2 * len(SUMS), 1, *(n for most in room.values.values() for n in (1, most)), 1, layers * experts, layers]
    sums, gap, *values, tokens, load, entropy = row.split(lengths)
    held = zip(SUMS, sums.view(-1, 2).tolist(), strict=True)
    found.sums = {name: value for name, (there, value) in held if there}
    found.log_prob_gap = float(gap)
    for name, count, kept in zip(room.values, values[::2], values[1::2], strict=True):
        if int(count):
            found.values[name] = [kept[: int(count)].float()]
    if int(tokens):
        found.add_routing(RouterCounts(load.view(layers, experts).long(), entropy, int(tokens)))
    return found


def counts_of_all(own: Counts, places: int, device: Any) -> tuple[list[Counts], int]:
    """The counts of every process, by rank, and the sum of their `places`: before the first forward pass of a step, in
    one collective."""
    if not several():
        return [own], places
    rows: Sequence[list[int]] = rows_of_all(torch.tensor([*own.numbers(), places], device=device)).tolist()
    return [Counts(*numbers) for *numbers, _ in rows], sum(row[-1] for row in rows)
