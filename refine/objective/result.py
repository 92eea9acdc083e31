"""What a step returns: its loss, and everything a researcher would plot.

Shape legend: B rows · T tokens of a row · C columns of positions (c for each document of a row)
· n rollouts of a position · k tokens of a rollout.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class StepResult:
    """`loss` [] has the gradient; all else is detached. Where `valid` is False all else is 0 (tokens: -1).

    With `ntp_tokens` and `rollout_tokens` given, the losses are shares: over an optimizer step's passes they add up.
    """

    loss: Tensor
    """nsp_weight * nsp_loss + ntp_weight * ntp_loss."""
    nsp_loss: Tensor
    """[] policy loss, summed over rollout tokens, divided by the step's [per token]."""
    ntp_loss: Tensor
    """[] cross-entropy, summed over predicted tokens, divided by the step's [nats per token]."""
    ntp_accuracy: Tensor
    """[] share of this pass's predicted tokens that are the likeliest."""
    entropy: Tensor
    """[B, T] of the next token after t + 1 tokens [nats]; 0 at padding."""
    positions: Tensor
    """[B, C] int64: tokens of the row read before the rollout; -1 where there is none."""
    valid: Tensor
    """[B, C] bool."""
    rollouts: Tensor
    """[B, C, n, k] int64: the sampled tokens."""
    rewards: dict[str, Tensor]
    """[B, C, n] of every kind: cosine, binary, hybrid."""
    advantages: Tensor
    """[B, C, n]."""
    log_probs: Tensor
    """[B, C, n, k] under the policy that is trained, before its update."""
    ratio: Tensor
    """[B, C, n, k] new over old probability; 1 on-policy."""
    clip_fraction: Tensor
    """[] share of rollout tokens whose loss is clipped."""
    log_prob_gap: Tensor
    """[] largest difference between the log-probabilities at sampling and at training; 0 where nothing was sampled."""
    old_log_probs: Tensor
    """[B, C, n, k] what `ratio` is taken against."""
    ntp_tokens: int
    """Predicted tokens of this pass."""
    rollout_tokens: int
    """Rollout tokens of this pass."""
