"""One REFINE step (docs/method.md, Objective; arXiv 2602.16704), in the paper's order.

Shape legend: B rows · T tokens of a row · C columns of positions · R rollout starts (valid positions)
· n rollouts of a start · k tokens of a rollout · D hidden size · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from refine.errors import SettingError
from refine.objective.advantages import advantages
from refine.objective.candidates import candidates
from refine.objective.documents import Documents, RolloutStarts
from refine.objective.external_rewards import ExternalReward
from refine.objective.loss import focus_loss, policy_loss
from refine.objective.positions import Plan, rollout_seeds, select
from refine.objective.result import StepResult
from refine.objective.rewards import REWARDS, rewards
from refine.objective.rollouts import OneRead, Reader, ReadingStrategy, stand_in
from refine.ops.token_statistics import TokenStatistics, token_statistics
from refine.settings.objective import ObjectiveSettings, is_external_reward


def next_sequence_step(
    model: Any,
    tokens: Tensor,
    settings: ObjectiveSettings,
    seeds: Tensor,
    *,
    lengths: Sequence[Sequence[int]] | None = None,
    marks: Sequence[Sequence[int]] | None = None,
    positions: Tensor | None = None,
    rollouts: Tensor | None = None,
    reuse: StepResult | None = None,
    ntp_tokens: int | None = None,
    rollout_tokens: int | None = None,
    focus_tokens: int | None = None,
    read: ReadingStrategy = OneRead(),  # noqa: B008  (it holds no state)
    reward: ExternalReward | None = None,
) -> StepResult:
    """The loss of tokens [B, T] int64, and everything that led to it.

    `seeds` [B] int64: a row's draws depend on its own seed alone. `lengths`: documents packed in each row, as in
    `model.read`. `marks`: the places of each row where its text asks for what it has told, as numbers of the row's
    tokens before them (selection `marked`). `positions` [B, C] (-1: none) and `rollouts` [B, C, n, k] fix the draws.
    `reuse`: an earlier result on the same tokens, for a further update on its rollouts against its log-probabilities.
    `ntp_tokens`, `rollout_tokens`, `focus_tokens`: denominators of the whole optimizer step (default: those of this
    pass). `read`: how the model reads; the twin of this step is the step with `Rereading()`. With nsp_weight 0 no
    rollouts are sampled; with focus_weight 0 too no positions are selected. `reward`: one from outside, optimised in
    the place of `settings.reward` (`external_reward` makes it of a function, or of its name there).
    Raises SettingError: seeds, marks, positions, rollouts or denominators that do not fit; ModelError: as `model.read`.
    """
    _check_seeds(seeds, tokens)
    if reward is None and is_external_reward(settings.reward):
        raise SettingError(f"reward {settings.reward} is not loaded: pass reward=external_reward(settings, tokenizer)")
    documents = Documents(tokens.shape, lengths, marks)
    if reuse is not None:
        positions, rollouts = reuse.positions, reuse.rollouts
    plan = _plan(documents, tokens, settings) if positions is None else None
    all_roll_out = settings.nsp_weight > 0 and getattr(model, "sharded", False)  # if one process does
    reader = read(model, tokens, documents, all_roll_out or _may_roll_out(plan, settings, positions))
    if plan is not None:
        plan, seeds = plan.sent(documents, seeds, tokens.device)
    next_token, predicts = _next_token(reader.hidden, model.lm_head.weight, tokens, documents, ntp_tokens)
    entropy = next_token.entropy * documents.real(tokens.device)
    starts = _starts(entropy, documents, plan, seeds, settings, positions, rollouts)
    sampled = _roll_out(reader, starts, tokens, settings, seeds, rollouts, reuse, reward)
    nsp_loss, ratio, clip_fraction = _policy_loss(sampled, settings, rollout_tokens)
    loss = settings.nsp_weight * nsp_loss + settings.ntp_weight * next_token.loss
    focus, focused = _focus(reader.hidden, model.lm_head.weight, tokens, starts, settings, focus_tokens)
    if focused:
        loss = loss + settings.focus_weight * focus
    if all_roll_out and not len(starts):
        loss = loss + stand_in(reader, documents.rows, settings.rollout_length, settings.temperature)
    return StepResult(
        loss=loss,
        nsp_loss=nsp_loss.detach(),
        focus_loss=focus.detach(),
        ratio=starts.scatter(ratio),
        clip_fraction=clip_fraction,
        focus_tokens=focused,
        **_told(documents, next_token, predicts, entropy, starts, sampled),
    )


def _told(
    documents: Documents,
    next_token: TokenStatistics,
    predicts: Tensor,
    entropy: Tensor,
    starts: RolloutStarts,
    sampled: Sampled,
) -> dict[str, Any]:
    """What was read and sampled, laid out by row and position: fields of the step's result."""
    positions = starts.on(entropy.device).positions()
    return {
        "ntp_loss": next_token.loss.detach(),
        "ntp_accuracy": (next_token.correct & predicts).sum() / max(1, documents.predicted),
        "cross_entropy": next_token.cross_entropy * predicts,
        "entropy": entropy,
        "positions": positions,
        "valid": positions >= 0,
        "rollouts": starts.scatter(sampled.tokens, -1),
        "rewards": {kind: starts.scatter(value) for kind, value in sampled.rewards.items()},
        "advantages": starts.scatter(sampled.advantages),
        "log_probs": starts.scatter(sampled.log_probs.detach()),
        "log_prob_gap": sampled.gap,
        "old_log_probs": starts.scatter(sampled.old_log_probs),
        "ntp_tokens": documents.predicted,
        "rollout_tokens": sampled.tokens.numel(),
    }


@dataclass(frozen=True)
class Sampled:
    """Rollouts [R, n, k], scored: `log_probs` has the gradient; rewards, advantages [R, n]; `gap` []."""

    tokens: Tensor
    log_probs: Tensor
    old_log_probs: Tensor
    rewards: dict[str, Tensor]
    advantages: Tensor
    gap: Tensor


def _plan(documents: Documents, tokens: Tensor, settings: ObjectiveSettings) -> Plan | None:
    """Where positions may fall; None if the objective selects none."""
    return Plan.of(documents, candidates(documents, tokens, settings), settings) if settings.uses_positions else None


def _may_roll_out(plan: Plan | None, settings: ObjectiveSettings, positions: Tensor | None) -> bool:
    """Whether rollouts can follow the read, so that it must be tappable."""
    return settings.nsp_weight > 0 and (positions is not None or (plan is not None and plan.widest > 0))


def _next_token(
    hidden: Tensor, head: Tensor, tokens: Tensor, documents: Documents, ntp_tokens: int | None
) -> tuple[TokenStatistics, Tensor]:
    """Statistics of the token after each of [B, T], with the loss's mean over `ntp_tokens`, and which [B, T] predict a
    token of their document."""
    predicts = documents.has_next(tokens.device)
    count = _denominator("ntp_tokens", ntp_tokens, documents.predicted)
    precise = torch.promote_types(hidden.dtype, torch.float32)
    return token_statistics(hidden, head, tokens.roll(-1, 1), predicts.to(precise) / count), predicts


def _policy_loss(sampled: Sampled, settings: ObjectiveSettings, given: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """`policy_loss` of what was sampled, over `given` rollout tokens (default: those of this pass)."""
    count = _denominator("rollout_tokens", given, sampled.tokens.numel())
    return policy_loss(sampled.log_probs, sampled.old_log_probs, sampled.advantages, count, settings)


def _focus(
    hidden: Tensor, head: Tensor, tokens: Tensor, starts: RolloutStarts, settings: ObjectiveSettings, given: int | None
) -> tuple[Tensor, int]:
    """The focus loss [], and the tokens of this pass that it counts: 0 without a focus_weight or without a start."""
    counted = len(starts) * settings.rollout_length if settings.focus_weight > 0 else 0
    if not counted:
        return hidden.new_zeros(()), 0
    count = _denominator("focus_tokens", given, counted)
    return focus_loss(hidden, head, tokens, starts, settings.rollout_length, count), counted


def _starts(
    entropy: Tensor,
    documents: Documents,
    plan: Plan | None,
    seeds: Tensor,
    settings: ObjectiveSettings,
    positions: Tensor | None,
    rollouts: Tensor | None,
) -> RolloutStarts:
    """The positions: as given, else drawn; none if no loss is taken there."""
    if not settings.uses_positions:
        return RolloutStarts.none(documents.rows)
    length = settings.rollout_length if rollouts is None else rollouts.shape[-1]
    if plan is not None:
        starts = select(documents.grid(entropy), plan, seeds, settings)
    else:
        assert positions is not None
        starts = RolloutStarts.at(positions, documents, length)
    if rollouts is not None and (
        rollouts.shape[:2] != starts.shape or rollouts.ndim != 4 or length != settings.rollout_length
    ):
        expected = f"int64 of shape [{starts.shape[0]}, {starts.shape[1]}, n, {settings.rollout_length}]"
        raise SettingError(f"rollouts have shape {tuple(rollouts.shape)}: expected {expected}")
    return starts


def _roll_out(
    reader: Reader,
    starts: RolloutStarts,
    tokens: Tensor,
    settings: ObjectiveSettings,
    seeds: Tensor,
    rollouts: Tensor | None,
    reuse: StepResult | None,
    reward: ExternalReward | None,
) -> Sampled:
    """Sample rollouts (or take `rollouts`), score them, reward them, and compare the rewards (or take those of
    `reuse`)."""
    n, k = settings.rollouts if rollouts is None else rollouts.shape[2], settings.rollout_length
    more = {} if reward is None else {reward.kind: reward}
    if settings.nsp_weight == 0:
        return _nothing(len(starts), 0, k, reader.hidden, more)
    if not len(starts):
        return _nothing(0, n, k, reader.hidden, more)
    at_sampling = None
    if rollouts is None:
        own = rollout_seeds(seeds.to(tokens.device), starts, n)
        drawn, at_sampling = reader.sample(starts, n, k, own, settings.temperature)
    else:
        drawn = starts.gather(rollouts)
    log_probs, hidden = reader.score(starts, drawn, settings.temperature)
    gap = log_probs.new_zeros(()) if at_sampling is None else (log_probs.detach() - at_sampling).abs().max()
    if reuse is not None:
        kept = {kind: starts.gather(value) for kind, value in reuse.rewards.items()}
        return Sampled(drawn, log_probs, starts.gather(reuse.old_log_probs), kept, starts.gather(reuse.advantages), gap)
    there = starts.on(tokens.device)
    row, after = there.row[:, None], there.position[:, None] + torch.arange(k, device=tokens.device)
    kinds = rewards(hidden, reader.hidden.detach()[row, after], drawn, tokens[row, after], more)
    optimised = kinds[settings.reward if reward is None else reward.kind]
    compared = advantages(optimised, there.document, settings.group, int(starts.document.max()) + 1)
    return Sampled(drawn, log_probs, log_probs.detach(), kinds, compared, gap)


def _nothing(starts: int, n: int, k: int, like: Tensor, more: Iterable[str]) -> Sampled:
    """No rollouts at all: no starts, or 0 rollouts of each."""
    zeros = like.new_zeros((starts, n, k), dtype=torch.promote_types(like.dtype, torch.float32))
    none = zeros[..., 0]
    tokens = torch.zeros((starts, n, k), dtype=torch.int64, device=like.device)
    return Sampled(tokens, zeros, zeros, dict.fromkeys([*REWARDS, *more], none), none, zeros.sum())


def _denominator(name: str, given: int | None, in_pass: int) -> int:
    """What a loss is divided by: `given`, the tokens of the whole optimizer step, or by default those of this pass."""
    if given is not None and (given < 0 or (given == 0 and in_pass > 0)):
        raise SettingError(
            f"{name} is {given}: expected those of the whole optimizer step, and this pass has {in_pass}"
        )
    return max(1, in_pass if given is None else given)


def _check_seeds(seeds: Tensor, tokens: Tensor) -> None:
    if seeds.shape != tokens.shape[:1] or seeds.dtype != torch.int64:
        raise SettingError(
            f"seeds must be int64 of shape [{tokens.shape[0]}], one a row, not {seeds.dtype} of {tuple(seeds.shape)}"
        )
