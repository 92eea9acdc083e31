"""What a step returns: its loss, and what a researcher plots.

Shape legend: B rows · T tokens of a row · C columns of positions (c for each document of a row)
· n rollouts of a position · k tokens of a rollout.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class StepResult:
    """`loss` [] has the gradient; everything else is detached. Where `valid` is False, values are 0 and tokens -1.

    Without a next-sequence loss n is 0. If `ntp_tokens`, `rollout_tokens` and `focus_tokens` were given, the losses of
    an optimizer step's passes add up to the step's.
    """

    loss: Tensor
    """nsp_weight * nsp_loss + ntp_weight * ntp_loss + focus_weight * focus_loss."""
    nsp_loss: Tensor
    """[] policy loss, summed over rollout tokens, divided by their count in the step [per token]."""
    focus_loss: Tensor
    """[] cross-entropy of the k true tokens after each position, divided by their count in the step [nats per token]; 0
    with focus_weight 0."""
    ntp_loss: Tensor
    """[] cross-entropy, summed over predicted tokens, divided by their count in the step [nats per token]."""
    ntp_accuracy: Tensor
    """[] share of this pass's predicted tokens that were the likeliest."""
    cross_entropy: Tensor
    """[B, T] of the next token [nats]; 0 where no token of the document follows."""
    entropy: Tensor
    """[B, T] of the next token [nats]; entry t is after t + 1 tokens; 0 at padding."""
    positions: Tensor
    """[B, C] int64: tokens of the row read before the rollout; -1 for none."""
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
    """[] largest difference between the log-probabilities at sampling and at training; 0 if nothing was sampled."""
    old_log_probs: Tensor
    """[B, C, n, k] under the policy that sampled; `ratio` divides by it."""
    ntp_tokens: int
    """Predicted tokens of this pass."""
    rollout_tokens: int
    """Rollout tokens of this pass."""
    focus_tokens: int
    """True tokens after the positions of this pass; 0 with focus_weight 0."""
