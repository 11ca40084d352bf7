"""Calibration: does a student that is sure of its answer have the right one?"""

import numpy as np

BINS = 10


Bin = tuple[float, float, int]  # mean confidence, share that is right, answers


def calibration_bins(confidence: np.ndarray, correct: np.ndarray, *, bins: int = BINS) -> list[Bin]:
    """Of answers whose `confidence` (float [n], in [0, 1]) lies in each of `bins` bins of equal width; NaN confidences
    (no answer) are left out. A bin without answers has means of 0."""
    known = ~np.isnan(confidence)
    confidence, right = confidence[known], correct[known].astype(np.float64)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    sure, share = (np.bincount(place, weights, bins) / np.maximum(count, 1) for weights in (confidence, right))
    return [(float(s), float(r), int(n)) for s, r, n in zip(sure, share, count, strict=True)]


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, *, bins: int = BINS) -> float:
    """sum over bins of (share of answers in it) x |accuracy - mean confidence| (Guo et al. 2017, arXiv:1706.04599).

    `confidence` float [n] lies in [0, 1]; bins have equal width. NaN confidences (no answer) are left out; NaN when
    nothing is left.
    """
    found = calibration_bins(confidence, correct, bins=bins)
    total = sum(count for *_, count in found)
    return sum(count * abs(right - sure) for sure, right, count in found) / total if total else float("nan")
