"""One REFINE step (METHOD.md; arXiv 2602.16704), in the paper's order, with the prefix read once.

Shape legend: B rows · T tokens of a row · C columns of positions · R places (valid positions) · n rollouts of a place
· k tokens of a rollout · D hidden size · V vocabulary.

`run` is the step on any Reader: `next_sequence_step` here reads once and taps, `by_rereading` is its twin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from refine.errors import SettingError
from refine.objective.advantages import advantages
from refine.objective.documents import Documents, Places, places_of
from refine.objective.loss import policy_loss
from refine.objective.positions import rollout_seeds, select, spans
from refine.objective.result import StepResult
from refine.objective.rewards import REWARDS, rewards
from refine.objective.rollouts import OneRead, Reader
from refine.ops.token_statistics import TokenStatistics, token_statistics
from refine.settings.objective import ObjectiveSettings


def next_sequence_step(
    model: Any,
    tokens: Tensor,
    settings: ObjectiveSettings,
    seeds: Tensor,
    *,
    lengths: Sequence[Sequence[int]] | None = None,
    positions: Tensor | None = None,
    rollouts: Tensor | None = None,
    reuse: StepResult | None = None,
    ntp_tokens: int | None = None,
    rollout_tokens: int | None = None,
) -> StepResult:
    """The loss of tokens [B, T] int64 and all that led to it.

    `seeds` [B] int64: a row's draws depend on its own alone. `lengths`: documents packed in each row, as in
    `model.read`. `positions` [B, C] (-1: none) and `rollouts` [B, C, n, k] fix the draws. `reuse`: an earlier result on
    the same tokens, for a further update on its rollouts against its log-probabilities. `ntp_tokens`, `rollout_tokens`:
    denominators of the whole optimizer step (default: those of this pass). Without `nsp_weight` nothing is rolled out.
    Raises SettingError: seeds, positions, rollouts or denominators that do not fit; ModelError: as `model.read`.
    """
    documents = Documents(tokens.shape, lengths)
    anywhere = settings.nsp_weight > 0 and (
        positions is not None or reuse is not None or any(spans(d.length, settings) for d in documents.all)
    )
    reader = OneRead(model, tokens, lengths, tappable=anywhere)
    return run(reader, model.lm_head.weight, tokens, settings, seeds, lengths=lengths, positions=positions,
               rollouts=rollouts, reuse=reuse, ntp_tokens=ntp_tokens, rollout_tokens=rollout_tokens)  # fmt: skip


def run(
    reader: Reader,
    head: Tensor,
    tokens: Tensor,
    settings: ObjectiveSettings,
    seeds: Tensor,
    *,
    lengths: Sequence[Sequence[int]] | None,
    positions: Tensor | None,
    rollouts: Tensor | None,
    reuse: StepResult | None,
    ntp_tokens: int | None,
    rollout_tokens: int | None,
) -> StepResult:
    """The step on what `reader` reads, with the head [V, D]; other arguments as in `next_sequence_step`."""
    documents = Documents(tokens.shape, lengths)
    _check_seeds(seeds, tokens)
    follows = documents.has_next(tokens.device)
    count = _denominator("ntp_tokens", ntp_tokens, documents.predicted)
    found = _next_token(reader.hidden, head, tokens, follows, count)
    entropy = found.entropy * documents.real(tokens.device)
    if reuse is not None:
        positions, rollouts = reuse.positions, reuse.rollouts
    places = _places(entropy, documents, seeds, settings, positions, rollouts)
    sampled = _roll_out(reader, places, tokens, settings, seeds, rollouts, reuse)
    count = _denominator("rollout_tokens", rollout_tokens, sampled.tokens.numel())
    nsp_loss, ratio, clip_fraction = policy_loss(
        sampled.log_probs, sampled.old_log_probs, sampled.advantages, count, settings
    )
    return StepResult(
        loss=settings.nsp_weight * nsp_loss + settings.ntp_weight * found.loss,
        nsp_loss=nsp_loss.detach(),
        ntp_loss=found.loss.detach(),
        ntp_accuracy=(found.correct & follows).sum() / max(1, documents.predicted),
        entropy=entropy,
        positions=places.positions().to(tokens.device),
        valid=(places.positions() >= 0).to(tokens.device),
        rollouts=places.scatter(sampled.tokens, -1),
        rewards={kind: places.scatter(value) for kind, value in sampled.rewards.items()},
        advantages=places.scatter(sampled.advantages),
        log_probs=places.scatter(sampled.log_probs.detach()),
        ratio=places.scatter(ratio),
        clip_fraction=clip_fraction,
        log_prob_gap=sampled.gap,
        old_log_probs=places.scatter(sampled.old_log_probs),
        ntp_tokens=documents.predicted,
        rollout_tokens=sampled.tokens.numel(),
    )


@dataclass(frozen=True)
class Sampled:
    """Rollouts [R, n, k], scored: `log_probs` has the gradient; rewards, advantages [R, n]; `gap` []."""

    tokens: Tensor
    log_probs: Tensor
    old_log_probs: Tensor
    rewards: dict[str, Tensor]
    advantages: Tensor
    gap: Tensor


def _next_token(hidden: Tensor, head: Tensor, tokens: Tensor, follows: Tensor, count: int) -> TokenStatistics:
    """Statistics of the token after each of [B, T]; the loss is that of those with one, `follows` [B, T] / count."""
    targets = tokens.roll(-1, 1)
    precise = torch.promote_types(hidden.dtype, torch.float32)
    return token_statistics(hidden, head, targets, follows.to(precise) / count)


def _places(entropy: Tensor, documents: Documents, seeds: Tensor, settings: ObjectiveSettings, positions: Tensor | None,
            rollouts: Tensor | None) -> Places:  # fmt: skip
    """Where rollouts start: as given, else drawn; none where there is no next-sequence loss."""
    if settings.nsp_weight == 0:
        return Places.none(documents.rows)
    length = settings.rollout_length if rollouts is None else rollouts.shape[-1]
    if positions is None:
        places = select(entropy, documents, seeds, settings)
    else:
        places = places_of(positions, documents, length)
    if rollouts is not None and (
        rollouts.shape[:2] != places.shape or rollouts.ndim != 4 or length != settings.rollout_length
    ):
        expected = f"int64 of shape [{places.shape[0]}, {places.shape[1]}, n, {settings.rollout_length}]"
        raise SettingError(f"rollouts have shape {tuple(rollouts.shape)}: expected {expected}")
    return places


def _roll_out(reader: Reader, places: Places, tokens: Tensor, settings: ObjectiveSettings, seeds: Tensor,
              rollouts: Tensor | None, reuse: StepResult | None) -> Sampled:  # fmt: skip
    """Sample (or take `rollouts`), score, reward and compare."""
    n, k = settings.rollouts if rollouts is None else rollouts.shape[2], settings.rollout_length
    if not len(places):
        return _nothing(n, k, reader.hidden)
    at_sampling = None
    if rollouts is None:
        drawn, at_sampling = reader.sample(places, n, k, rollout_seeds(seeds, places, n), settings.temperature)
    else:
        drawn = places.gather(rollouts)
    log_probs, hidden = reader.score(places, drawn, settings.temperature)
    gap = log_probs.new_zeros(()) if at_sampling is None else (log_probs.detach() - at_sampling).abs().max()
    if reuse is not None:
        kept = {kind: places.gather(value) for kind, value in reuse.rewards.items()}
        return Sampled(drawn, log_probs, places.gather(reuse.old_log_probs), kept, places.gather(reuse.advantages), gap)
    row, after = places.row.to(tokens.device)[:, None], places.position[:, None] + torch.arange(k)
    after = after.to(tokens.device)
    kinds = rewards(hidden, reader.hidden.detach()[row, after], drawn, tokens[row, after])
    compared = advantages(kinds[settings.reward], places.document, settings.group)
    return Sampled(drawn, log_probs, log_probs.detach(), kinds, compared, gap)


def _nothing(n: int, k: int, like: Tensor) -> Sampled:
    """No rollouts at all."""
    zeros = like.new_zeros((0, n, k), dtype=torch.promote_types(like.dtype, torch.float32))
    none = zeros[..., 0]
    tokens = torch.zeros((0, n, k), dtype=torch.int64, device=like.device)
    return Sampled(tokens, zeros, zeros, dict.fromkeys(REWARDS, none), none, zeros.sum())


def _denominator(name: str, given: int | None, here: int) -> int:
    """What a loss is divided by: the tokens of the whole optimizer step, `given`, or those of this pass."""
    if given is not None and (given < 0 or (given == 0 and here > 0)):
        raise SettingError(f"{name} is {given}: expected those of the whole optimizer step, and this pass has {here}")
    return max(1, here if given is None else given)


def _check_seeds(seeds: Tensor, tokens: Tensor) -> None:
    if seeds.shape != tokens.shape[:1] or seeds.dtype != torch.int64:
        raise SettingError(
            f"seeds must be int64 of shape [{tokens.shape[0]}], one a row, not {seeds.dtype} of {tuple(seeds.shape)}"
        )
