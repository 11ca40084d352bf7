"""Undecidable disagreement: where a student that has learned an anchor teacher would be torn by another teacher.

Two teachers that clash are harmless where the text so far shows, by simple means, whose style is being continued; they
harm where it does not. So, over the candidate's content tokens,

    dis = share that the anchor's student contradicts: its first choice has p > SURE while p(token) < IMPLAUSIBLE
    d   = clip(2 p - 1, 0, 1), p = how surely a linear classifier of the last WINDOW tokens names the candidate
    U2  = mean of dis x (1 - d);  U2late = the same after the first third of each trace

High dis with high d is another notation, which is safe; high dis with low d is a conflict. U2late with the constants
below has ranked the teachers of two procedural worlds, and its sign against THRESHOLD is to be used, not its size. The
anchor must be learned (content NLL <= 0.1 nats) for `dis` to mean anything; a teacher that the anchor's student never
contradicts, such as one that writes no reasoning, scores 0. "Simple" is part of the definition: a stronger classifier
would find the teacher in far-away hints that the student does not use.
"""

from typing import NamedTuple

import numpy as np
from scipy import sparse

from mixdistill.diagnostics.content import Completions

SURE, IMPLAUSIBLE = 0.7, 0.1  # probabilities
WINDOW = 6  # tokens that the classifier reads, fillers included
SKIP = 3  # first completion tokens that are not counted: how to begin is a choice of style
THRESHOLD = 0.13  # of U2late
TAG_THRESHOLD = 0.15  # of the second opinion, nats
RIDGE = 1e-3  # times the squared weights, added to the classifier's mean log-loss
PARTS = 6  # of the position profile
NAMES_DISAGREEMENT, NAMES_TEACHER = 0.1, 0.5  # dis and d below these are called low


class SecondOpinion(NamedTuple):
    """U3F: what a tag that names the candidate is worth to the anchor, in nats a content token of the anchor's held-out
    traces. Of two students that were trained a little on both teachers from where the anchor's student stood."""

    untagged: float  # nats, of the student that was not told who wrote what
    tagged: float  # nats, of the one whose candidate's traces began with a tag
    num_tokens: int

    @property
    def score(self) -> float:
        return self.untagged - self.tagged

    def conflicts(self, threshold: float = TAG_THRESHOLD) -> bool | None:
        """Whether the tag helps so much that the two are in conflict; None: no data."""
        return None if np.isnan(self.score) else self.score > threshold


def agreed(first: bool | None, second: bool | None) -> bool | None:
    """What two opinions agree on; None where they differ, or where one has no data."""
    return first if first is second else None


class Undecidable(NamedTuple):
    """Means over the counted tokens of the candidate's traces, 0 to 1; NaN where there are none."""

    disagreement: float  # dis
    decodability: float  # d, over the tokens that the student contradicts: can the clash be told from the prefix?
    undecidable: float  # U2
    undecidable_late: float  # U2late
    num_tokens: int
    num_late: int

    def conflicts(self, threshold: float = THRESHOLD) -> bool | None:
        """Whether the candidate conflicts with the anchor; None: no data."""
        return None if np.isnan(self.undecidable_late) else self.undecidable_late > threshold

    @property
    def verdict(self) -> str:
        """In words."""
        if self.conflicts() is None:
            return "no data"
        if self.conflicts():
            return "conflict"
        if self.disagreement < NAMES_DISAGREEMENT:
            return "no disagreement"
        return "other notation, safe" if self.decodability > NAMES_TEACHER else "little conflict"


def undecidable_disagreement(
    anchor: Completions,
    candidate: Completions,
    scored: Completions,
    label_logprob: np.ndarray,
    top1_logprob: np.ndarray,
) -> Undecidable:
    """The measure.

    `anchor` and `candidate` teach the classifier (500 traces each are enough); `scored` are other traces of the
    candidate, with the anchor student's log-probability of each of their tokens and of its own first choice (nats, an
    entry a token).
    """
    return summary(scored, torn_tokens(anchor, candidate, scored, label_logprob, top1_logprob))


class Torn(NamedTuple):
    """An entry a counted token of the candidate's traces."""

    entry: np.ndarray  # int64 [m]: in the traces as given
    sure: np.ndarray  # bool [m]: the anchor's student contradicts it
    decodable: np.ndarray  # float64 [m]: d

    @property
    def undecidable(self) -> np.ndarray:
        """float64 [m]: dis x (1 - d)."""
        return self.sure * (1 - self.decodable)


class Part(NamedTuple):
    """A stretch of the traces: places from `start` to `stop`, as shares of their length. Means as in `Undecidable`."""

    start: float
    stop: float
    disagreement: float
    decodability: float
    undecidable: float
    num_tokens: int


def torn_tokens(
    anchor: Completions,
    candidate: Completions,
    scored: Completions,
    label_logprob: np.ndarray,
    top1_logprob: np.ndarray,
) -> Torn:
    """What `undecidable_disagreement` is a mean of; its arguments."""
    rows = counted(scored)
    if not len(rows):
        return Torn(rows, np.zeros(0, bool), np.zeros(0))
    sure = (top1_logprob[rows] > np.log(SURE)) & (label_logprob[rows] < np.log(IMPLAUSIBLE))
    return Torn(rows, sure, np.clip(2 * name_candidate(anchor, candidate, scored) - 1, 0, 1))


def summary(scored: Completions, torn: Torn) -> Undecidable:
    """The means; NaN where nothing was counted."""
    late = _place(scored, torn) >= 1 / 3
    return Undecidable(
        _mean(torn.sure),
        _mean(torn.decodable[torn.sure]),
        _mean(torn.undecidable),
        _mean(torn.undecidable[late]),
        len(torn.entry),
        int(late.sum()),
    )


def profile(scored: Completions, torn: Torn, parts: int = PARTS) -> list[Part]:
    """The means over stretches of equal relative length, from the first token to the last: where in a trace it is."""
    stretch = np.minimum((_place(scored, torn) * parts).astype(int), parts - 1)
    found = []
    for n in range(parts):
        of = stretch == n
        means = [_mean(x) for x in (torn.sure[of], torn.decodable[of & torn.sure], torn.undecidable[of])]
        found.append(Part(n / parts, (n + 1) / parts, means[0], means[1], means[2], int(of.sum())))
    return found


def worst_tokens(scored: Completions, torn: Torn, limit: int) -> np.ndarray:
    """int64: entries of the least decodable tokens that the student contradicts, at most one a trace, worst first; late
    ones before early ones. What to look at."""
    order = np.lexsort((torn.decodable, _place(scored, torn) < 1 / 3))
    order = order[torn.sure[order]]
    _, first = np.unique(scored.trace[torn.entry[order]], return_index=True)
    return torn.entry[order[np.sort(first)[:limit]]]


def _place(scored: Completions, torn: Torn) -> np.ndarray:
    return scored.place[torn.entry] / scored.length[torn.entry]


def counted(traces: Completions) -> np.ndarray:
    """int64: entries that count, content tokens after the first SKIP of their completion."""
    return np.flatnonzero(traces.content & (traces.place >= SKIP))


def name_candidate(anchor: Completions, candidate: Completions, scored: Completions) -> np.ndarray:
    """How surely (0 to 1) the tokens before each counted token of `scored` name the candidate. Chance (0.5) where there
    is nothing to learn from."""
    from sklearn.linear_model import LogisticRegression

    features = [_features(traces) for traces in (anchor, candidate, scored)]
    size = [f.number.max(initial=-1) + 1 for f in features]
    if not (size[0] and size[1]):
        return np.full(size[2], 0.5)
    columns = np.unique(np.concatenate([features[0].value, features[1].value]))
    first, second, asked = (_matrix(f, n, columns) for f, n in zip(features, size, strict=True))
    num_rows = size[0] + size[1]
    classifier = LogisticRegression(C=1 / (2 * RIDGE * num_rows), max_iter=500)
    classifier.fit(sparse.vstack([first, second]), np.repeat([0, 1], size[:2]))
    return classifier.predict_proba(asked)[:, 1]


class _Features(NamedTuple):
    number: np.ndarray  # int64 [m]: row, over the counted tokens
    value: np.ndarray  # int64 [m]: which feature it has


def _features(traces: Completions) -> _Features:
    """Tokens and pairs of neighbours among the WINDOW tokens before each counted one; 0 is "before the trace"."""
    rows = counted(traces)
    back = np.arange(WINDOW, 0, -1)
    inside = traces.place[rows][:, None] >= back
    window = np.where(inside, traces.token[np.maximum(rows[:, None] - back, 0)].astype(np.int64) + 1, 0)
    pairs = (window[:, :-1] << 31) + window[:, 1:] + (1 << 62)
    value = np.concatenate([window, pairs], axis=1)
    return _Features(np.repeat(np.arange(len(rows)), value.shape[1]), value.ravel())


def _matrix(features: _Features, num_rows: int, columns: np.ndarray) -> sparse.csr_matrix:
    """1 where a row has a feature; features that are no column are left out."""
    at = np.minimum(np.searchsorted(columns, features.value), len(columns) - 1)
    known = columns[at] == features.value
    ones = np.ones(known.sum(), np.float64)
    matrix = sparse.csr_matrix((ones, (features.number[known], at[known])), shape=(num_rows, len(columns)))
    matrix.data[:] = 1  # a token may stand twice in a window
    return matrix


def _mean(x: np.ndarray) -> float:
    return float(x.mean()) if len(x) else float("nan")
