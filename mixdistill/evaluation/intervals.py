"""How sure a mean over problems and seeds is. The same numbers give the same interval."""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """A mean, and where it may lie."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson(successes: float, trials: int, *, level: float = 0.95) -> Interval:
    """Of a share of problems, one student (Wilson 1927); keeps inside [0, 1] and says something at 0 and 1, too. NaN
    without trials."""
    if trials == 0:
        return Interval(math.nan, math.nan, math.nan)
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    # Rounding could leave [0, 1] where none or all succeed.
    return Interval(share, max(min(centre - half, share), 0.0), min(max(centre + half, share), 1.0))


def accuracy(correct: np.ndarray, *, level: float = 0.95) -> Interval:
    """Of bool [seeds, problems], students of several seeds on the same problems; Wilson's for one seed."""
    if len(correct) == 1:
        return wilson(float(correct.sum()), correct.shape[1], level=level)
    mean, low, high = crossed(correct.astype(np.float64), level=level)
    return Interval(mean, max(low, 0.0), min(high, 1.0))


def difference(one: np.ndarray, other: np.ndarray, *, level: float = 0.95) -> Interval:
    """Of the accuracies of two arms, one minus other, each bool [seeds, problems]: paired by seed and by problem."""
    return crossed(one.astype(np.float64) - other.astype(np.float64), level=level)


def crossed(x: np.ndarray, *, level: float = 0.95) -> Interval:
    """The mean of [seeds, problems], for other seeds and other problems.

    The half width is the root of the sum of two squares: t of the seeds' means (seeds - 1 degrees of freedom) and z of
    the problems' means. The interaction counts in both, so the interval is rather too wide than too narrow. With one
    seed it speaks of that student alone.
    """
    seeds, problems = x.shape
    mean = float(x.mean())
    if problems < 2:
        return Interval(mean, math.nan, math.nan)
    half = NormalDist().inv_cdf(0.5 + level / 2) * x.mean(axis=0).std(ddof=1) / math.sqrt(problems)
    if seeds > 1:
        over_seeds = stats.t.ppf(0.5 + level / 2, seeds - 1) * x.mean(axis=1).std(ddof=1) / math.sqrt(seeds)
        half = math.hypot(half, over_seeds)
    return Interval(mean, mean - float(half), mean + float(half))


def mean(x: np.ndarray, *, level: float = 0.95) -> Interval:
    """Of one number a seed, for other seeds (Student's t); NaN entries are left out, one entry has no interval."""
    x = x[~np.isnan(x)]
    if len(x) < 2:
        return Interval(float(x[0]) if len(x) else math.nan, math.nan, math.nan)
    half = float(stats.t.ppf(0.5 + level / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return Interval(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half)


def resampled(x: np.ndarray, *, level: float = 0.95, draws: int = 2000) -> Interval:
    """The mean of [seeds, problems] with a percentile bootstrap that draws seeds and problems anew, each on its own.

    Seeds are few, so it is too narrow where they differ much; `crossed` is not.
    """
    random = np.random.default_rng(0)
    counts = [random.multinomial(size, np.full(size, 1 / size), draws) / size for size in x.shape]
    means = np.einsum("ds,dp,sp->d", *counts, x.astype(np.float64), optimize=True)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(x.mean()), float(low), float(high))
