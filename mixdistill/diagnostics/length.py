"""Does a teacher write more where the problem is harder? Length against difficulty (arXiv:2509.07339)."""

import numpy as np

from mixdistill.diagnostics.divergence import spearman


def difficulty(problem: np.ndarray, teacher: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Share of the teachers that fail a problem, for each trace `[N]`: 0 easy, 1 nobody solves it.

    `correct` is 1.0, 0.0, or NaN where nobody graded. A teacher with several traces counts once, by its mean. NaN for a
    problem that no teacher, or only one, was graded on: there the teacher's own success would be the difficulty.
    """
    graded = ~np.isnan(correct)
    pair, index = np.unique(np.stack([problem[graded], teacher[graded]], axis=1), axis=0, return_inverse=True)
    fails = np.bincount(index, 1 - correct[graded], len(pair)) / np.maximum(np.bincount(index, minlength=len(pair)), 1)
    size = int(problem.max(initial=-1)) + 1
    teachers = np.bincount(pair[:, 0], minlength=size)
    share = np.bincount(pair[:, 0], fails, size) / np.maximum(teachers, 1)
    return np.where(teachers > 1, share, np.nan)[problem]


def length_against_difficulty(length: np.ndarray, difficulty: np.ndarray) -> float:
    """Spearman's correlation over one teacher's traces, -1 to 1; NaN where either does not vary or nothing is known."""
    return spearman(length, difficulty)
