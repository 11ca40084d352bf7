"""How a teacher moves between reasoning behaviours: the transition matrix of its steps' labels (arXiv:2601.06002).

Similar transitions are necessary for two teachers to go together, not sufficient: the paper's own two sources correlate
at r = 0.9 and lose ten points when mixed. So this describes a teacher, and is no gate.
"""

import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from mixdistill.diagnostics import divergence

BEHAVIOURS = ("deduction", "reflection", "exploration")
Labeller = Callable[[str], int]  # text of a step -> index in BEHAVIOURS (or in labels of your own)

_REFLECTION = re.compile(
    r"\b(?:wait|hmm|actually|mistake|wrong|(?:double[- ])?check(?:ing|ed)?|verif(?:y|ied|ying)"
    r"|re-?(?:read|check|consider)|make sure|confirm(?:s|ed)?|hold on|is that right)\b",
    re.I,
)
_EXPLORATION = re.compile(
    r"\b(?:alternatively|another (?:way|approach|method)|maybe|perhaps|suppose|what if|might|let me try|try|"
    r"could (?:also|be)|or (?:else|maybe)|instead)\b",
    re.I,
)


def label_by_cues(step: str) -> int:
    """Reflection or exploration by the cue that comes first in the step, deduction where there is none."""
    reflection, exploration = _REFLECTION.search(step), _EXPLORATION.search(step)
    if reflection and (not exploration or reflection.start() <= exploration.start()):
        return 1
    return 2 if exploration else 0


def count_transitions(labels: Iterable[Sequence[int]], num_labels: int = len(BEHAVIOURS)) -> np.ndarray:
    """int64 [b, b']: how often a step of label b' follows one of label b, over the label sequences of traces."""
    counts = np.zeros((num_labels, num_labels), np.int64)
    for sequence in labels:
        steps = np.asarray(sequence, np.int64)
        np.add.at(counts, (steps[:-1], steps[1:]), 1)
    return counts


def transition_matrix(counts: np.ndarray) -> np.ndarray:
    """P(b' | b), rows summing to one; a row of NaN where label b is never left."""
    leaving = counts.sum(axis=1, keepdims=True)
    return np.where(leaving > 0, counts / np.maximum(leaving, 1), np.nan)


def transition_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r between the entries of two teachers' transition matrices (from counts); rows that either lacks are
    left out, and NaN where nothing varies."""
    return divergence.pearson(transition_matrix(a), transition_matrix(b))


def transition_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Jensen-Shannon distance between two teachers' pairs (b, b') of neighbouring steps, 0 to 1; NaN without any."""
    return divergence.jensen_shannon(a, b)
