"""What the rows of a study say: means and differences with intervals. A verdict reads this and nothing else."""

import math
from collections.abc import Sequence

import numpy as np

from mixdistill.evaluation import intervals
from mixdistill.evaluation.intervals import Interval
from mixdistill.studies.study import Row

NONE = Interval(math.nan, math.nan, math.nan)


class Results:
    """Rows by arm and seed."""

    def __init__(self, rows: Sequence[Row]):
        self.rows = list(rows)
        self.arms = list(dict.fromkeys(row.arm for row in rows))
        self._by = {(row.arm, row.seed): row for row in rows}

    def seeds(self, arm: str) -> list[int]:
        """Of the rows that an arm has."""
        return sorted(seed for one, seed in self._by if one == arm)

    def values(self, arm: str, measure: str) -> list[float]:
        """A number a seed, in the order of the seeds; of outcomes their share. NaN where there is none."""
        return [_number(self._by[arm, seed], measure) for seed in self.seeds(arm)]

    def mean(self, arm: str, measure: str) -> float:
        """Over the seeds that have it; NaN without any."""
        return self.interval(arm, measure).mean

    def interval(self, arm: str, measure: str) -> Interval:
        """Where the mean lies for other seeds and, of outcomes, other problems (95 %)."""
        table = self._outcomes([arm], measure, self.seeds(arm))
        if table is not None:
            return intervals.accuracy(table[0])
        return intervals.mean(np.array(self.values(arm, measure)))

    def difference(self, one: str, other: str, measure: str) -> Interval:
        """Of two arms, over the seeds that both have, paired by seed and problem. NaN where they have none in
        common."""
        pair = self._paired(one, other, measure)
        if pair is None:
            return NONE
        return intervals.crossed(pair) if pair.ndim == 2 else intervals.mean(pair)

    def resampled(self, one: str, other: str, measure: str) -> Interval:
        """The same difference with a percentile bootstrap over seeds and problems."""
        pair = self._paired(one, other, measure)
        return NONE if pair is None else intervals.resampled(pair.reshape(len(pair), -1))

    def spent(self, arm: str, what: str) -> float:
        """Mean over the seeds; NaN where it is not known."""
        found = [row.spent[what] for row in self.rows if row.arm == arm and what in row.spent]
        return float(np.mean(found)) if found else math.nan

    def _paired(self, one: str, other: str, measure: str) -> np.ndarray | None:
        """one - other, [seeds, problems] or [seeds]."""
        seeds = sorted({*self.seeds(one)} & {*self.seeds(other)})
        if not seeds:
            return None
        table = self._outcomes([one, other], measure, seeds)
        if table is not None:
            return table[0].astype(np.float64) - table[1]
        left, right = ([_number(self._by[arm, seed], measure) for seed in seeds] for arm in (one, other))
        found = np.array(left) - np.array(right)
        return found[~np.isnan(found)] if not np.isnan(found).all() else None

    def _outcomes(self, arms: Sequence[str], measure: str, seeds: Sequence[int]) -> np.ndarray | None:
        """bool [arms, seeds, problems]; None where one of them has no outcomes of this name."""
        rows = [[self._by[arm, seed].outcomes.get(measure) for seed in seeds] for arm in arms]
        return np.array(rows, bool) if seeds and all(some for row in rows for some in row) else None


def _number(row: Row, measure: str) -> float:
    if measure in row.outcomes:
        return float(np.mean(row.outcomes[measure]))
    return row.numbers.get(measure, math.nan)
