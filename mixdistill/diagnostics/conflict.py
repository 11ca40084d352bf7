"""Continuation conflict: how differently two teachers continue the same local text. Traces alone; no student.

Over contexts of the last `width` content tokens that both teachers write, each weighted by the smaller of its two
shares m in the teachers' traces:

    conflict(a, b) = sum m * (JS across a and b - JS within a and within b) / max(sum m, FLOOR)      in bits, 0 to 1

JS is the Jensen-Shannon divergence of the next content token, always between a first and a second half of a teacher's
traces: what two halves of one teacher differ by is chance, and is taken off. Give traces in one order of problems for
all teachers (`content.content_traces`): then halves that are compared have no problem in common, within a teacher as
across; traces of the same problems look alike whoever wrote them. On a procedural world it ranks the pairs that harm a
student above a hedging style and another notation, where surprisal, rank-surprisal and gradient cosine do not; on a
second world it flags another notation too, so it is a reason to look, not a verdict. It cannot see a teacher that is
too terse or too hard: such a one shares no context with anybody. A clash between trace and problem shows where a
context is joined with the problem: the two content tokens around the first place in the problem of its last token. That
takes many more traces: contexts become rare.

Filler tokens hide conflicts and make false ones, so give content tokens (`content.content_traces`). Contexts that reach
the start of a trace are left out: how to begin is a choice of style.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

WIDTH = 2  # content tokens; one sees nothing, three need about five times the traces
THREADS = 4  # each holds the events of two teachers several times
FLOOR = 0.02  # of the mass: pairs that share less are in too little conflict to matter
# Contexts are sampled by their hash, the same ones for every teacher, down to this many (context, next token) events:
# about a gigabyte at the peak.
MAX_EVENTS = 16_000_000


Likeliest = tuple[tuple[int, float], ...]  # (token, share) in descending order


class ConflictMatrix(NamedTuple):
    """`score[i, j]` in bits between teachers i and j, 0 on the diagonal, NaN for a teacher of fewer than two traces.
    `shared[i, j]` is the mass of the contexts that both have; where it is 0 nothing was compared."""

    teachers: tuple[str, ...]
    score: np.ndarray  # float64 [K, K]
    shared: np.ndarray  # float64 [K, K], 0 to 1

    def between(self, a: str, b: str) -> float:
        """The score of two teachers by name."""
        return float(self.score[self.teachers.index(a), self.teachers.index(b)])


class Clash(NamedTuple):
    """One context that two teachers continue differently."""

    context: tuple[int, ...]  # tokens, oldest first; those of the problem, if it was joined, before them
    share: float  # of the pair's conflict
    after: tuple[
        tuple[tuple[int, float], ...], tuple[tuple[int, float], ...]
    ]  # each teacher's likeliest (token, share)


@dataclass(frozen=True)
class Continuations:
    """What every teacher writes after every context that at least two of them have in both halves of their traces."""

    teachers: tuple[str, ...]
    contexts: np.ndarray  # int64 [C, width]: their tokens; joined with the problem, two more in front, -1 for none
    vocabulary: int  # tokens lie below it
    events: tuple[np.ndarray, ...]  # for each teacher int64 [n], ascending: context number * vocabulary + next token
    counts: tuple[np.ndarray, ...]  # for each teacher float64 [n, 2]: how often, in either half
    totals: np.ndarray  # int64 [K]: all events, shared contexts or not
    num_traces: np.ndarray  # int64 [K]


Tokens = Mapping[str, Sequence[np.ndarray]]  # of each teacher's traces, one int array a trace


def continuation_conflict(traces: Tokens, *, width: int = WIDTH, problems: Tokens | None = None) -> ConflictMatrix:
    """The matrix over all teachers from their traces' content tokens, and those of their problems if contexts are to
    be joined with them."""
    return conflict_matrix(count_continuations(traces, width=width, problems=problems))


def count_continuations(
    traces: Tokens, *, width: int = WIDTH, max_events: int = MAX_EVENTS, problems: Tokens | None = None
) -> Continuations:
    """Counts every (context, next token). The first half of a teacher's traces, as given, is its first half."""
    length = sum(max(len(trace) - width, 0) for of_teacher in traces.values() for trace in of_teacher)
    limit = np.uint64(min(1.0, max_events / max(length, 1)) * float(2**64 - 2**11))
    asked = [None] * len(traces) if problems is None else [problems[name] for name in traces]
    found = [_windows(own, width, limit, of) for own, of in zip(traces.values(), asked, strict=True)]
    own = [np.intersect1d(w.hash[~w.late], w.hash[w.late]) for w in found]
    hashes, holders = np.unique(np.concatenate([*own, np.zeros(0, np.uint64)]), return_counts=True)
    hashes = hashes[holders > 1]
    contexts = np.zeros((len(hashes), width + 2 * (problems is not None)), np.int64)
    vocabulary = 1 + max((int(w.target.max()) for w in found if len(w.target)), default=0)
    events, counts = [], []
    for w in found:
        at = np.minimum(np.searchsorted(hashes, w.hash), max(len(hashes) - 1, 0))
        kept = hashes[at] == w.hash if len(hashes) else np.zeros(len(at), bool)
        contexts[at[kept]] = w.context[kept]
        event, number = np.unique(at[kept] * vocabulary + w.target[kept], return_inverse=True)
        events.append(event)
        counts.append(_count(number, len(event), w.late[kept]))
    totals = np.array([len(w.target) for w in found], np.int64)
    num_traces = np.array([len(of_teacher) for of_teacher in traces.values()], np.int64)
    return Continuations(tuple(traces), contexts, vocabulary, tuple(events), tuple(counts), totals, num_traces)


def conflict_matrix(continuations: Continuations) -> ConflictMatrix:
    """The scores of all pairs."""
    size = len(continuations.teachers)
    score, shared = np.zeros((size, size)), np.zeros((size, size))
    empty = continuations.num_traces < 2  # a half without traces
    score[empty, :] = score[:, empty] = np.nan
    np.fill_diagonal(score, 0.0)
    pairs = [(i, j) for i in range(size) for j in range(i) if not (empty[i] or empty[j])]

    def scored(pair: tuple[int, int]) -> tuple[float, float]:
        found = _compare(continuations, *pair)
        mass = found.mass.sum()
        return mass, (found.mass * found.excess).sum() / max(mass, FLOOR)

    # Threads: sorting and arithmetic on long arrays hold no lock.
    with ThreadPoolExecutor(THREADS) as pool:
        for (i, j), (mass, excess) in zip(pairs, pool.map(scored, pairs), strict=True):
            shared[i, j] = shared[j, i] = mass
            score[i, j] = score[j, i] = excess
    return ConflictMatrix(continuations.teachers, score, shared)


def worst_contexts(continuations: Continuations, a: str, b: str, *, limit: int = 10) -> list[Clash]:
    """The contexts that make up most of the conflict of two teachers, worst first, with what either writes next."""
    i, j = continuations.teachers.index(a), continuations.teachers.index(b)
    pair = _compare(continuations, i, j)
    part = pair.mass * pair.excess
    order = [n for n in np.argsort(-part, kind="stable")[:limit] if part[n] > 0]
    return [
        Clash(
            tuple(int(token) for token in continuations.contexts[pair.context[n]] if token >= 0),
            float(part[n] / part.sum()),
            (_likeliest(continuations, i, int(pair.context[n])), _likeliest(continuations, j, int(pair.context[n]))),
        )
        for n in order
    ]


def project_conflicts(gradients: Sequence[np.ndarray], *, seed: int = 0) -> list[np.ndarray]:
    """PCGrad (arXiv:2001.06782): from each vector takes its component against every other one that it opposes, in
    random order, the others as they were given. Float64 copies; a zero vector opposes nothing."""
    given = [np.asarray(gradient, np.float64) for gradient in gradients]
    random, projected = np.random.default_rng(seed), []
    for i, gradient in enumerate(given):
        for k in random.permutation(len(given)):
            against = float(gradient @ given[k])
            if k != i and against < 0:
                gradient = gradient - against / float(given[k] @ given[k]) * given[k]
        projected.append(gradient)
    return projected


class _Windows(NamedTuple):
    context: np.ndarray  # int32 [n, width]
    hash: np.ndarray  # uint64 [n], of the context
    target: np.ndarray  # int64 [n]
    late: np.ndarray  # bool [n]: in the second half of the traces


def _windows(
    traces: Sequence[np.ndarray], width: int, limit: np.uint64, problems: Sequence[np.ndarray] | None
) -> _Windows:
    """The contexts of one teacher whose hash is at most `limit`, and what follows them."""
    lengths = np.array([len(trace) for trace in traces], np.int64)
    tokens = np.concatenate([*traces, np.zeros(0, np.int32)]).astype(np.int32)
    starts = np.cumsum(lengths) - lengths
    place = np.arange(len(tokens)) - np.repeat(starts, lengths)
    late = np.repeat(np.arange(len(traces)) >= len(traces) // 2, lengths)
    target = np.flatnonzero(place >= width)
    hashes = np.zeros(len(target), np.uint64)
    for back in range(width, 0, -1):
        hashes = _mix(hashes + tokens[target - back].astype(np.uint64) + np.uint64(1))
    target, hashes = target[hashes <= limit], hashes[hashes <= limit]
    context = tokens[target[:, None] - np.arange(width, 0, -1)]
    if problems is not None:
        trace = np.repeat(np.arange(len(traces)), lengths)[target]
        around = _around(problems, trace, context[:, -1])
        context = np.concatenate([around, context], axis=1)
        for column in around.T:
            hashes = _mix(hashes + (column + 2).astype(np.uint64))
    return _Windows(context, hashes, tokens[target].astype(np.int64), late[target])


def _around(problems: Sequence[np.ndarray], trace: np.ndarray, token: np.ndarray) -> np.ndarray:
    """int32 [n, 2]: what stands before and after the first place of each token in its trace's problem; -1 for none."""
    around = np.full((len(token), 2), -1, np.int32)
    ends = np.searchsorted(trace, np.arange(len(problems) + 1))
    for problem, start, stop in zip(problems, ends[:-1], ends[1:], strict=True):
        if not len(problem):
            continue
        values, first = np.unique(problem, return_index=True)
        at = np.minimum(np.searchsorted(values, token[start:stop]), len(values) - 1)
        found = values[at] == token[start:stop]
        padded = np.concatenate([[-1], problem, [-1]])
        pairs = np.stack([padded[first[at]], padded[first[at] + 2]], axis=1)
        around[start:stop][found] = pairs[found]
    return around


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64 (Steele, Lea & Flood 2014): a bijection of uint64, every output bit depends on every input bit."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _count(number: np.ndarray, size: int, late: np.ndarray) -> np.ndarray:
    return np.stack([np.bincount(number[late == half], minlength=size) for half in (False, True)], 1).astype(float)


class _Pair(NamedTuple):
    context: np.ndarray  # int64 [S]: numbers of the shared contexts
    mass: np.ndarray  # float64 [S]: the smaller share
    excess: np.ndarray  # float64 [S]: JS across minus JS within, bits


def _compare(continuations: Continuations, i: int, j: int) -> _Pair:
    """All contexts that teachers i and j both have in both halves."""
    events = np.union1d(continuations.events[i], continuations.events[j])
    if not len(events):
        return _Pair(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    table = np.zeros((len(events), 4))  # first and second half of i, then of j
    table[np.searchsorted(events, continuations.events[i]), :2] = continuations.counts[i]
    table[np.searchsorted(events, continuations.events[j]), 2:] = continuations.counts[j]
    context = events // continuations.vocabulary  # ascending, as events are
    start = np.flatnonzero(np.concatenate([[True], context[1:] != context[:-1]]))
    sizes = np.diff(start, append=len(events))
    seen = np.add.reduceat(table, start)
    both = (seen > 0).all(axis=1)
    if not both.any():
        return _Pair(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    # Most contexts are one teacher's own: only those of both are compared.
    table, context, sizes, seen = table[np.repeat(both, sizes)], context[start[both]], sizes[both], seen[both]
    start = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    p = table / np.repeat(seen, sizes, axis=0)

    def js(a: int, b: int) -> np.ndarray:
        return np.add.reduceat(_js_terms(p[:, a], p[:, b]), start)

    excess = (js(0, 3) + js(1, 2)) / 2 - (js(0, 1) + js(2, 3)) / 2
    totals = np.maximum(continuations.totals, 1)
    mass = np.minimum(seen[:, :2].sum(1) / totals[i], seen[:, 2:].sum(1) / totals[j])
    return _Pair(context, mass, excess)


def _js_terms(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """What each next token adds to the Jensen-Shannon divergence, bits."""
    middle = (p + q) / 2

    def toward(x: np.ndarray) -> np.ndarray:
        return x * np.log2(np.where(x > 0, x, 1) / np.where(x > 0, middle, 1))

    return (toward(p) + toward(q)) / 2


def _likeliest(continuations: Continuations, teacher: int, context: int, top: int = 3) -> Likeliest:
    first, last = np.searchsorted(
        continuations.events[teacher], [context * continuations.vocabulary, (context + 1) * continuations.vocabulary]
    )
    tokens = continuations.events[teacher][first:last] % continuations.vocabulary
    counts = continuations.counts[teacher][first:last].sum(axis=1)
    order = np.argsort(-counts, kind="stable")[:top]
    return tuple((int(tokens[n]), float(counts[n] / counts.sum())) for n in order)
