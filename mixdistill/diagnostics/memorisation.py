"""Which teacher's phrasing does a token copy? STIM's token-level memorisation (arXiv:2508.02037) over training shards.

Each score is Spearman's correlation, over the student's most likely next tokens (k = 20; the emitted one is added when
it is not among them), between their probability and how often the training traces have them in a context. Near 1: the
student says what the traces say most often there. The paper counts in a web corpus; the index here is of the very
traces the student learned from, by teacher, so a wrong token can be laid at a teacher's door.

    local   context = the longest ending of the text, with the token, that the traces hold
    mid     co-occurrence in a trace with the salient tokens of the shortest context that still has the token emitted
    long    co-occurrence in a trace with the salient tokens of the problem

What is salient is a parameter. The paper attributes with LERG; the default here takes the rarest tokens, for no student
has to be run for that.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mixdistill.diagnostics.divergence import spearman
from mixdistill.diagnostics.ngram_index import NgramIndex

NUM_SALIENT = 5

Salience = Callable[[Sequence[int]], Sequence[int]]  # tokens of a context -> its salient ones


def frequency_correlation(
    probabilities: Sequence[float] | np.ndarray, frequencies: Sequence[float] | np.ndarray
) -> float:
    """Spearman's correlation between the next tokens' probabilities and their frequencies, ties by mean rank. NaN ("no
    data") for fewer than two tokens and where either does not vary; pairs with a NaN are left out."""
    return spearman(np.asarray(probabilities, np.float64), np.asarray(frequencies, np.float64))


class Alternatives(NamedTuple):
    """The student's most likely tokens at one position and their probabilities, the emitted token among them."""

    tokens: Sequence[int]
    probabilities: Sequence[float]


class Attribution(NamedTuple):
    """Whose n-gram a token ends. `teacher` is the one that writes it most often per token of its own, None when nobody
    does; `suffix` is its length in tokens, the token included."""

    teacher: str | None
    suffix: int
    rate: dict[str, float]  # occurrences per million tokens of the teacher


class Memorisation(NamedTuple):
    """The scores of one token, -1 to 1, NaN without data; `source` names the largest of them."""

    local: float
    mid: float
    long: float
    attribution: Attribution

    @property
    def source(self) -> str | None:
        scores = {name: score for name in ("local", "mid", "long") if not np.isnan(score := getattr(self, name))}
        return max(scores, key=lambda name: scores[name], default=None)


def memorisation(
    index: NgramIndex,
    prompt: Sequence[int],
    output: Sequence[int],
    position: int,
    alternatives: Alternatives,
    *,
    mid_context: Sequence[int] | None = None,
    salient: Salience | None = None,
) -> Memorisation:
    """The scores of `output[position]`. `mid_context` comes from `shortest_context`; by default it is the output before
    the token. Raises `ValueError` unless the emitted token is among the alternatives."""
    if output[position] not in alternatives.tokens:
        raise ValueError(f"token {output[position]} is not among the alternatives {list(alternatives.tokens)}")
    salient = salient or (lambda tokens: rarest(index, tokens))
    before = [*prompt, *output[:position]]
    mid = output[:position] if mid_context is None else mid_context
    return Memorisation(
        local_score(index, before, output[position], alternatives),
        cooccurrence_score(index, salient(mid), alternatives),
        cooccurrence_score(index, salient(prompt), alternatives),
        attribute(index, [*before, output[position]]),
    )


def local_score(index: NgramIndex, before: Sequence[int], token: int, alternatives: Alternatives) -> float:
    """Correlation of the alternatives' probabilities with how often each stands where `token` does, after the longest
    part of `before` with which the traces hold it; NaN when they do not hold the token at all."""
    length = index.longest_suffix([*before, token])
    if not length:
        return float("nan")
    context = list(before[len(before) - length + 1 :]) if length > 1 else []
    frequencies = [index.count([*context, alternative]) for alternative in alternatives.tokens]
    return frequency_correlation(alternatives.probabilities, frequencies)


def cooccurrence_score(index: NgramIndex, salient: Sequence[int], alternatives: Alternatives) -> float:
    """Correlation of the alternatives' probabilities with the number of traces that hold both the alternative and a
    salient token, averaged over the salient tokens; NaN without salient tokens."""
    if not len(salient):
        return float("nan")
    having = [index.traces_with(token) for token in salient]
    frequencies = [
        np.mean([np.count_nonzero(index.traces_with(token) & traces) for traces in having])
        for token in alternatives.tokens
    ]
    return frequency_correlation(alternatives.probabilities, np.array(frequencies))


def rarest(index: NgramIndex, tokens: Sequence[int], count: int = NUM_SALIENT) -> list[int]:
    """The `count` different tokens that the fewest traces hold; those that none holds say nothing and are left out."""
    holders = {token: int(np.count_nonzero(index.traces_with(token))) for token in dict.fromkeys(map(int, tokens))}
    known = [token for token in holders if holders[token]]
    return sorted(known, key=lambda token: holders[token])[:count]


def shortest_context(emits: Callable[[Sequence[int]], int], before: Sequence[int], token: int) -> Sequence[int]:
    """The shortest ending of `before` after which greedy decoding, `emits(context)`, gives `token`; all of it if none
    does. One call a length."""
    for length in range(1, len(before)):
        if emits(before[-length:]) == token:
            return before[-length:]
    return before


def attribute(index: NgramIndex, tokens: Sequence[int]) -> Attribution:
    """Whose traces hold the longest ending of `tokens`. Rates are per token of each teacher: one that wrote more has no
    advantage."""
    length = index.longest_suffix(tokens)
    if not length:
        return Attribution(None, 0, dict.fromkeys(index.teachers, 0.0))
    rate = 1e6 * index.count_by_teacher(tokens[len(tokens) - length :]) / np.maximum(index.totals, 1)
    return Attribution(
        index.teachers[int(rate.argmax())], length, dict(zip(index.teachers, rate.tolist(), strict=True))
    )
