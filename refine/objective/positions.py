"""Where rollouts start: one position from each chunk of a document's candidates, by smoothed entropy
(docs/method.md, Positions; arXiv 2602.16704, section 3).

Shape legend: B rows · T tokens of a row · G documents · L tokens of the longest document · c chunks of a document
· S tokens of the widest chunk · R rollout starts (valid positions).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from refine.objective.candidates import Candidates
from refine.objective.documents import Documents, RolloutStarts
from refine.ops.layout import moved_together
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


def select(
    entropy: Tensor,
    documents: Documents,
    admitted: Sequence[Candidates],
    seeds: Tensor,
    settings: ObjectiveSettings,
) -> RolloutStarts:
    """Draw positions from entropy [B, T] with seeds [B] int64; columns d*c + j for chunk j of a row's d-th document.

    `admitted`: the candidates of each document (`refine.objective.candidates`), one position is drawn from each span.

    A draw takes the largest of score + Gumbel noise, which is a draw from softmax(score); the noise of token t is a
    function of its row's seed, the document's number in the row, and t.
    """
    columns = settings.positions * max((len(row) for row in documents.lengths), default=0)
    found = [(g, j, first, last) for g, one in enumerate(admitted) for j, first, last in one.spans]
    g, j, first, last = torch.tensor(found, dtype=torch.int64).reshape(-1, 4).unbind(1)
    row, number, start = (
        torch.tensor([getattr(documents.all[i], name) for i in g.tolist()], dtype=torch.int64)
        for name in ("row", "number", "start")
    )
    column = number * settings.positions + j
    if not found:
        return RolloutStarts((documents.rows, columns), row, column, g, start)
    widest = int((last - first).max()) + 1
    lengths = torch.tensor([document.length for document in documents.all])
    planned = [lengths, torch.stack([g, first, last]), torch.stack([row, number]), torch.stack([row, column, g, start])]
    lengths, bounds, place, columns_there = moved_together(planned, entropy.device)
    scores = _only(_scores(documents.grid(entropy), lengths, settings), admitted, settings)
    noise_seeds = _noise_seeds(seeds.to(scores.device), place[0], place[1], settings)
    chosen = _draw(scores, bounds, widest, noise_seeds)
    shape, (r, c, d, s) = (documents.rows, columns), columns_there.unbind()
    there = RolloutStarts(shape, r, c, d, s + chosen)
    return RolloutStarts(shape, row, column, g, start + chosen.cpu(), elsewhere={there.row.device: there})


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


def _only(scores: Tensor, admitted: Sequence[Candidates], settings: ObjectiveSettings) -> Tensor:
    """scores [G, L] with -inf at every t - 1 that a document's candidates leave out. Marks are all alike: 0."""
    chosen = [(g, one.only) for g, one in enumerate(admitted) if one.only is not None]
    if not chosen:
        return scores
    inside = torch.zeros(scores.shape, dtype=torch.bool)
    for g, places in chosen:
        inside[g, torch.tensor(places, dtype=torch.int64) - 1] = True
    whole = torch.tensor([one.only is None for one in admitted])[:, None]
    kept, marked = torch.stack([whole | inside, inside & (settings.selection == "marked")]).to(scores.device)
    return scores.masked_fill(~kept, -torch.inf).masked_fill(marked, 0.0)


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
