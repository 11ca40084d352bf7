"""Distance and correlation with a defined value for degenerate input: NaN is "no data", never a silent 0."""

import numpy as np
from scipy import stats


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> float:
    """Jensen-Shannon distance (the root of the divergence, base 2) of two vectors of counts or shares: 0 for equal
    distributions, 1 for disjoint ones; NaN where either is empty."""
    p, q = (np.asarray(x, np.float64).ravel() for x in (p, q))
    if not (p.sum() > 0 and q.sum() > 0):
        return float("nan")
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2
    divergence = (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2
    return float(np.sqrt(min(max(divergence, 0.0), 1.0)))


def distances(histograms: np.ndarray) -> np.ndarray:
    """`jensen_shannon` of all pairs: `[K, bins]` counts -> `[K, K]`."""
    size = len(histograms)
    matrix = np.zeros((size, size))
    for i in range(size):
        for j in range(i + 1):
            matrix[i, j] = matrix[j, i] = jensen_shannon(histograms[i], histograms[j])
    return matrix


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation, ties by their mean rank, pairs with a NaN left out; NaN for fewer than two different values."""
    return _correlation(stats.spearmanr, x, y)


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Linear correlation, pairs with a NaN left out; NaN for fewer than two different values."""
    return _correlation(stats.pearsonr, x, y)


def _correlation(measure, x: np.ndarray, y: np.ndarray) -> float:
    x, y = (np.asarray(values, np.float64).ravel() for values in (x, y))
    both = ~(np.isnan(x) | np.isnan(y))
    x, y = x[both], y[both]
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(measure(x, y).statistic)


def _relative_entropy(p: np.ndarray, q: np.ndarray) -> float:
    seen = p > 0
    return float((p[seen] * np.log2(p[seen] / q[seen])).sum())
