"""Calibration: does a student that is sure of its answer have the right one?"""

import numpy as np

BINS = 10


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, *, bins: int = BINS) -> float:
    """sum over bins of (share of answers in it) x |accuracy - mean confidence| (Guo et al. 2017, arXiv:1706.04599).

    `confidence` float [n] lies in [0, 1]; bins have equal width. NaN confidences (no answer) are left out; NaN when
    nothing is left.
    """
    known = ~np.isnan(confidence)
    if not known.any():
        return float("nan")
    confidence, correct = confidence[known], correct[known].astype(np.float64)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(place, correct - confidence, bins)
    return float(np.abs(gaps).sum() / len(confidence))
