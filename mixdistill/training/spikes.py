"""Robust outliers: how far a number lies above what was usual lately."""

import numpy as np

MAD_TO_SIGMA = 1.4826  # median absolute deviation of a normal distribution, to its standard deviation
# A spread below these would make a spike of rounding: share of the median, and nats (or units of the norm).
LOSS_FLOOR, NORM_FLOOR = (0.02, 0.02), (0.1, 1e-6)


class Usual:
    """The last values that were no spikes. JSON in, JSON out."""

    def __init__(self, window: int, warm_up: int, floor: tuple[float, float], values: list[float] | None = None):
        self._window, self._warm_up, self._floor = window, warm_up, floor
        self.values = list(values or [])

    def z(self, value: float) -> float:
        """Robust standard deviations above the median; 0 while there are too few values to tell."""
        if len(self.values) < self._warm_up:
            return 0.0
        seen = np.array(self.values)
        median = float(np.median(seen))
        spread = MAD_TO_SIGMA * float(np.median(np.abs(seen - median)))
        share, least = self._floor
        return (value - median) / max(spread, share * abs(median), least)

    def add(self, value: float) -> None:
        """One more usual value."""
        self.values = [*self.values, value][-self._window :]
