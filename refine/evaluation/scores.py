"""What is measured on a model, without what measures it: nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class PositionScore:
    """Loss and accuracy of predicting the `first`-th to the `last`-th token of a sequence (the 1st is given).

    loss_interval: 95 % bootstrap interval over sequences, None for a single one. sequence_losses: the mean loss in each
    sequence that reaches so far, in their order; empty in records that an older version wrote.
    """

    first: int
    last: int
    loss: float
    accuracy: float
    tokens: int
    loss_interval: Interval = None
    sequence_losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class NextTokenScore:
    """loss: mean cross-entropy [nats per predicted token]. accuracy: share of tokens that were the likeliest.

    tokens: how many were predicted. Intervals are 95 % bootstrap intervals over sequences, None for a single one.
    sequence_losses, sequence_tokens: mean loss and predicted tokens of each sequence, in their order, so that two
    models can be compared sequence by sequence.
    """

    loss: float
    accuracy: float
    tokens: int
    sequences: int
    by_position: tuple[PositionScore, ...]
    loss_interval: Interval
    accuracy_interval: Interval
    sequence_losses: tuple[float, ...]
    sequence_tokens: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """text: what was written, without the end token. tokens: how many were written.

    prompt_tokens: how many were read. cut: how many were taken out of the middle of a prompt that was too long.
    log_prob: mean log-probability of the reference answer's tokens, given the prompt [nats per token].
    adapt_seconds: what adapting to this prompt took [s].
    """

    text: str
    tokens: int
    prompt_tokens: int
    cut: int
    log_prob: float
    adapt_seconds: float = 0.0


@dataclass(frozen=True)
class HarnessScore:
    """One metric of one lm-eval task. error: lm-eval's standard error, None where it gives none."""

    task: str
    metric: str
    value: float
    error: float | None
    samples: int

    def interval(self) -> tuple[float, float]:
        """95 % interval from the standard error."""
        reach = 1.96 * (self.error or 0.0)
        return self.value - reach, self.value + reach
