"""Estimates with their sample count and 95 % interval, and their text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

LEVEL = 0.95
RESAMPLES = 2000
FEWEST_CLEAR = 10  # samples: an interval over fewer says too little to call a difference clear
Scores = Sequence[float] | np.ndarray
Interval = tuple[float, float] | None
SEED = 20240  # of the resampling, so that the same scores give the same interval


@dataclass(frozen=True)
class Estimate:
    """A mean over samples. low, high: 95 % interval; None for one sample, which has no spread."""

    value: float
    samples: int
    low: float | None
    high: float | None

    @property
    def interval(self) -> Interval:
        """(low, high), or None."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def clear_of_zero(self) -> bool:
        """Whether the interval leaves out zero. Never over fewer than `FEWEST_CLEAR` samples."""
        if self.samples < FEWEST_CLEAR or self.interval is None:
            return False
        return self.interval[0] > 0 or self.interval[1] < 0

    def text(self, scale: float = 1.0, digits: int = 3, sign: str = "") -> str:
        """``0.250 [0.102, 0.495]``, each times `scale`; the value alone without an interval. sign: "+" shows it."""
        return f"{self.value_text(scale, digits, sign)} {self.interval_text(scale, digits)}".rstrip()

    def value_text(self, scale: float = 1.0, digits: int = 3, sign: str = "") -> str:
        """``0.250``."""
        return f"{scale * self.value:{sign}.{digits}f}"

    def interval_text(self, scale: float = 1.0, digits: int = 3) -> str:
        """``[0.102, 0.495]``; empty without an interval."""
        if self.interval is None:
            return ""
        low, high = self.interval
        return f"[{scale * low:.{digits}f}, {scale * high:.{digits}f}]"


def mean_of_scores(scores: Scores) -> Estimate:
    """The mean of per-sample scores: Wilson's interval if all are 0 or 1, otherwise the percentile bootstrap's.

    Raises ValueError if there are no scores.
    """
    values = np.asarray(scores, dtype=float)
    if values.size == 0:
        raise ValueError("no scores to average")
    if np.isin(values, (0.0, 1.0)).all():
        return _share(int(values.sum()), values.size)
    return ratio(values, np.ones_like(values))


def ratio(numerators: Scores, denominators: Scores) -> Estimate:
    """sum(numerators) / sum(denominators) over units, for example the losses and tokens of sequences.

    The interval is the percentile bootstrap's: it draws units, each with its numerator and denominator. The estimate's
    samples are the units.
    """
    tops, bottoms = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    value = float(tops.sum() / bottoms.sum())
    if tops.size < 2 or not math.isfinite(value):
        return Estimate(value, tops.size, None, None)
    low, high = _bootstrap((tops, bottoms), lambda a, b, axis: a.sum(axis) / b.sum(axis))
    return Estimate(value, tops.size, low, high)


def mean_over_strata(strata: Sequence[np.ndarray], differences: bool = False) -> Estimate:
    """The mean of the means of `strata`: one array [seeds, samples] a task, with the same seeds in all of them.

    The interval is the percentile bootstrap's: it draws samples within each task, and seeds if there are several. For
    scores of 0 and 1, unless they are `differences`, it is Wilson's; over several seeds only where the bootstrap's has
    no width, because all scores are equal. The estimate's samples are those of all tasks. Raises ValueError if there
    are no strata or one has no samples.
    """
    if not strata or any(values.size == 0 for values in strata):
        raise ValueError("no scores to average")
    value = float(np.mean([values.mean() for values in strata]))
    samples, seeds = sum(values.shape[1] for values in strata), strata[0].shape[0]
    shares = not differences and all(np.isin(values, (0.0, 1.0)).all() for values in strata)
    if seeds == 1 and len(strata) == 1 and not differences:
        return mean_of_scores(strata[0][0])
    if samples + seeds - 1 == len(strata):
        return Estimate(value, samples, None, None)
    if shares and (seeds == 1 or value in (0.0, 1.0)):
        return Estimate(value, samples, *wilson(value, _equal_samples(strata)))
    drawn = [np.arange(values.shape[1]) for values in strata if values.shape[1] > 1]
    of_seeds = [np.arange(seeds)] if seeds > 1 else []

    def mean(*index: np.ndarray, axis: int) -> Any:
        found: Any = 0.0
        places = iter(index[len(of_seeds) :])
        for values in strata:
            over = next(places) if values.shape[1] > 1 else np.zeros((*index[0].shape[:-1], 1), dtype=int)
            rows = index[0] if of_seeds else np.zeros((*over.shape[:-1], 1), dtype=int)
            found = found + values[rows[..., :, None], over[..., None, :]].mean((-1, -2))
        return found / len(strata)

    low, high = _bootstrap((*of_seeds, *drawn), mean, paired=False)
    return Estimate(value, samples, low, high)


def mean_difference(scores: Scores, baseline: Scores) -> Estimate:
    """The mean of scores - baseline, sample by sample (paired), with the percentile bootstrap's interval.

    Raises ValueError if the counts differ: the scores are not of the same samples.
    """
    if len(scores) != len(baseline):
        raise ValueError(f"{len(scores)} scores cannot be paired with {len(baseline)}")
    differences = np.asarray(scores, dtype=float) - np.asarray(baseline, dtype=float)
    return ratio(differences, np.ones_like(differences))


def wilson(share: float, samples: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share over `samples`, which need not be a whole number."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    middle = share + z * z / (2 * samples)
    spread = z * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples * samples))
    scale = 1 + z * z / samples
    return 0.0 if share == 0 else (middle - spread) / scale, 1.0 if share == 1 else (middle + spread) / scale


def _equal_samples(strata: Sequence[np.ndarray]) -> float:
    """The number of samples of one task whose mean varies no less than the mean of the tasks' means: their number for
    tasks of one size, and fewer for others."""
    return len(strata) ** 2 / sum(1 / values.shape[1] for values in strata)


def _share(right: int, samples: int) -> Estimate:
    return Estimate(right / samples, samples, *wilson(right / samples, samples))


def _bootstrap(samples: tuple[np.ndarray, ...], statistic: Any, paired: bool = True) -> tuple[float, float]:
    from scipy.stats import bootstrap

    interval = bootstrap(
        samples,
        statistic,
        paired=paired,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        batch=256,
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(interval.low), float(interval.high)
