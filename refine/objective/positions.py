"""Where rollouts start: one position from each chunk of a document's candidates, by smoothed entropy
(docs/method.md, Positions; arXiv 2602.16704, section 3).

Shape legend: B rows · T tokens of a row · G documents · L tokens of the longest document · c chunks of a document
· S tokens of the widest chunk · R rollout starts (valid positions).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from refine.objective.candidates import Candidates
from refine.objective.documents import Documents, RolloutStarts
from refine.ops.seeded_draws import mix, uniform
from refine.settings.objective import ObjectiveSettings

POSITION_DRAWS, ROLLOUT_DRAWS = 1, 2  # first counter of every draw, so that the two kinds never share a number


def smooth(entropy: Tensor, lengths: Tensor, width: int) -> Tensor:
    """Centred moving average of entropy [G, L] over `width` tokens (one more if even), over real tokens only.

    lengths [G]; values after a document's end do not count.
    """
    width += 1 - width % 2
    real = (torch.arange(entropy.shape[1], device=entropy.device) < lengths[:, None]).to(torch.float64)

    def windows(x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool1d(x[:, None], width, stride=1, padding=width // 2)[:, 0]

    return windows(entropy.to(torch.float64) * real) / windows(real).clamp(min=0.5 / width)


@dataclass(frozen=True)
class Plan:
    """Where positions may fall, known before the model reads: R draws, each from a span of a document.

    numbers: lengths [G]; document, first and last t [3, R]; row and number of the document in its row [2, R]; row,
    column, document and its start [4, R]; document and t - 1 of the places that are admitted alone [2, M]; whether a
    document admits all of its spans [G]. All int64, on the host until `sent`.
    """

    shape: tuple[int, int]
    widest: int  # the most t of a draw
    columns: tuple[Tensor, ...]  # row, column, document and its start, on the host
    numbers: tuple[Tensor, ...]

    @staticmethod
    def of(documents: Documents, admitted: Sequence[Candidates], settings: ObjectiveSettings) -> Plan:
        """`admitted`: the candidates of each document (`refine.objective.candidates`), one draw from each span."""
        columns = settings.positions * max((len(row) for row in documents.lengths), default=0)
        found = [(g, j, first, last) for g, one in enumerate(admitted) for j, first, last in one.spans]
        g, j, first, last = torch.tensor(found, dtype=torch.int64).reshape(-1, 4).unbind(1)
        row, number, start = (
            torch.tensor([getattr(documents.all[i], name) for i in g.tolist()], dtype=torch.int64)
            for name in ("row", "number", "start")
        )
        on_host = (row, number * settings.positions + j, g, start)
        lengths = torch.tensor([document.length for document in documents.all])
        places = [(d, t - 1) for d, one in enumerate(admitted) for t in one.only or ()]
        only = torch.tensor(places, dtype=torch.int64).reshape(-1, 2).T
        whole = torch.tensor([int(one.only is None) for one in admitted])
        widest = int((last - first).max()) + 1 if found else 0
        bounds, place = torch.stack([g, first, last]), torch.stack([row, number])
        numbers = (lengths, bounds, place, torch.stack(on_host), only, whole)
        return Plan((documents.rows, columns), widest, on_host, numbers)

    def sent(self, documents: Documents, seeds: Tensor, device: torch.device) -> tuple[Plan, Tensor]:
        """The plan with its numbers on `device`, and `seeds` [B] there, in one transfer."""
        if seeds.device != torch.device("cpu"):
            return replace(self, numbers=tuple(documents.sent(self.numbers, device))), seeds.to(device)
        *numbers, there = documents.sent([*self.numbers, seeds], device)
        return replace(self, numbers=tuple(numbers)), there


def select(entropy: Tensor, plan: Plan, seeds: Tensor, settings: ObjectiveSettings) -> RolloutStarts:
    """Draw positions from entropy [G, L] (`Documents.grid`) with seeds [B] int64; columns d*c + j for chunk j of a
    row's d-th document. `plan` and `seeds`: on the device of `entropy`.

    A draw takes the largest of score + Gumbel noise, which is a draw from softmax(score); the noise of token t is a
    function of its row's seed, the document's number in the row, and t.
    """
    row, column, g, start = plan.columns
    if not len(g):
        return RolloutStarts(plan.shape, row, column, g, start)
    lengths, bounds, place, columns_there, only, whole = plan.numbers
    scores = _only(_scores(entropy, lengths, settings), only, whole, settings)
    chosen = _draw(scores, bounds, plan.widest, _noise_seeds(seeds, place[0], place[1], settings))
    r, c, d, s = columns_there.unbind()
    there = RolloutStarts(plan.shape, r, c, d, s + chosen)
    return RolloutStarts(plan.shape, row, column, g, start + chosen.cpu(), elsewhere={there.row.device: there})


def rollout_seeds(seeds: Tensor, starts: RolloutStarts, rollouts: int) -> Tensor:
    """[R * n] int64: one seed a rollout, a function of its row's seed, the start's column and the rollout's number."""
    there = starts.on(seeds.device)
    own = mix(seeds[there.row], ROLLOUT_DRAWS, there.column)
    return mix(own[:, None], torch.arange(rollouts, device=seeds.device)).reshape(-1)


def _scores(entropy: Tensor, lengths: Tensor, settings: ObjectiveSettings) -> Tensor:
    """[G, L] float64: how much the selection rule prefers each token, were all admitted."""
    if settings.selection in ("entropy", "marked", "recall"):  # the last two: of documents that fall back
        return smooth(entropy, lengths, settings.rollout_length) / settings.selection_temperature
    if settings.selection == "uniform":
        return torch.zeros_like(entropy, dtype=torch.float64)
    return entropy.to(torch.float64) * (1 if settings.selection == "argmax" else -1)


def _only(scores: Tensor, only: Tensor, whole: Tensor, settings: ObjectiveSettings) -> Tensor:
    """scores [G, L] with -inf at every t - 1 that a document's candidates leave out. Marks are all alike: 0."""
    if not only.shape[1]:
        return scores
    one = torch.ones((), dtype=torch.bool, device=scores.device)
    inside = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device).index_put(tuple(only.unbind()), one)
    scores = scores.masked_fill(~(inside | whole[:, None].bool()), -torch.inf)
    return scores.masked_fill(inside, 0.0) if settings.selection == "marked" else scores


def _noise_seeds(seeds: Tensor, row: Tensor, number: Tensor, settings: ObjectiveSettings) -> Tensor | None:
    if settings.selection in ("argmax", "argmin"):
        return None
    return mix(seeds[row], POSITION_DRAWS, number)


def _draw(scores: Tensor, bounds: Tensor, widest: int, noise_seeds: Tensor | None) -> Tensor:
    """[R] the drawn t (tokens of the document read): the best of scores [G, L], with noise if seeded.

    bounds [3, R]: document, first and last t of each draw. widest: the most t of a draw.
    """
    g, first, last = bounds
    t = first[:, None] + torch.arange(widest, device=scores.device)  # [R, S]
    found = scores[g[:, None], (t - 1).clamp(max=scores.shape[1] - 1)]
    if noise_seeds is not None:
        found = found - (-uniform(noise_seeds[:, None], t).log()).log()
    return first + found.masked_fill(t > last[:, None], -torch.inf).argmax(-1)
