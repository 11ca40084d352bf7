"""Bootstrap intervals of ratios of sums. Problems are resampled, not traces: traces of one problem go together."""

import functools
from typing import NamedTuple

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95
MAX_CLUSTERS = 4096  # of problems that are drawn together where there are more: the table of draws stays small


class Estimate(NamedTuple):
    """A value and its interval (percentile bootstrap), NaN without data. `count`: traces that have a value."""

    value: float
    low: float
    high: float
    count: int


def ratio_estimate(
    numerator: np.ndarray,
    denominator: np.ndarray,
    problem: np.ndarray,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Estimate:
    """sum(numerator) / sum(denominator) over traces; a trace where either is NaN counts in neither. With one problem
    the interval is the value alone."""
    known = ~(np.isnan(numerator) | np.isnan(denominator))
    numerator, denominator, problem = numerator[known], denominator[known], problem[known]
    if not denominator.sum() > 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    _, number = np.unique(problem, return_inverse=True)
    number %= MAX_CLUSTERS
    sums = np.stack([np.bincount(number, numerator), np.bincount(number, denominator)], axis=1)
    drawn = _draws(len(sums), resamples, seed) @ sums
    values = drawn[:, 0][drawn[:, 1] > 0] / drawn[:, 1][drawn[:, 1] > 0]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(numerator.sum() / denominator.sum()), float(low), float(high), int(known.sum()))


@functools.lru_cache(4)
def _draws(problems: int, resamples: int, seed: int) -> np.ndarray:
    """How often each problem is drawn, `[resamples, problems]`; the same for all measures of a teacher."""
    random = np.random.default_rng(seed)
    return random.multinomial(problems, np.full(problems, 1 / problems), resamples).astype(np.float64)
