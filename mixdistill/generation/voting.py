"""Confident voting: several completions of one prompt, unsure ones stopped early, the others' answers weighed
(DeepConf online, arXiv:2508.15260)."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mixdistill.errors import UserError
from mixdistill.generation.sampler import Generated, LowConfidence, complete
from mixdistill.students.student import Params, Student


@dataclasses.dataclass(frozen=True)
class Voting:
    """Settings. The paper's are warmup 16, budget 256, window 2048 and keep 90 ("high") or 10 ("low").

    The stop threshold is the percentile 100 - `keep` of the warm-up's lowest window means; a completion shorter than a
    window counts with its plain mean. Sampling ends when the leading answer has `consensus` of the votes' weight.
    """

    warmup: int = 16  # completions that nothing stops
    budget: int = 64  # completions in all
    round_size: int = 16  # completions between two looks at the votes
    window: int = 2048  # tokens
    keep: float = 90.0  # percent of the warm-up that the threshold lets live
    consensus: float = 0.95
    top_k: int = 20

    def __post_init__(self):
        if not 1 <= self.warmup <= self.budget or self.round_size < 1 or self.window < 1:
            raise UserError(f"voting needs 1 <= warmup <= budget and positive round_size and window; given {self}")
        if not 0 < self.keep <= 100 or not 0 < self.consensus <= 1:
            raise UserError(
                f"keep is a percentage, consensus a share; given keep={self.keep}, consensus={self.consensus}"
            )


class Vote(NamedTuple):
    """The outcome. Stopped completions have no vote, and neither has an answer of None."""

    answer: str | None  # None: nobody voted
    share: float  # of the votes' weight; NaN without votes
    num_completions: int
    num_stopped: int
    tokens: int  # generated, stopped ones included
    saved: float  # tokens that the whole budget, nothing stopped, would have taken beyond these: an estimate
    threshold: float  # nats


Sample = Callable[[int, int, LowConfidence], Sequence[Generated]]  # (first row, how many, stop rule) -> completions


def vote(sample: Sample, answer: Callable[[Generated], str | None], voting: Voting = Voting()) -> Vote:
    """Samples until the answers agree or the budget is spent. A vote weighs the lowest window mean of its completion.

    `sample(first, count, stop)` draws completions number first, first + 1, ... of the one prompt.
    """
    ballots: dict[str, float] = defaultdict(float)
    drawn, stopped, tokens, whole = 0, 0, 0, []
    threshold = -np.inf
    while drawn < voting.budget:
        count = voting.warmup if drawn == 0 else min(voting.round_size, voting.budget - drawn)
        found = sample(drawn, count, LowConfidence(voting.window, threshold, voting.top_k))
        lowest = [lowest_mean(one.confidence, voting.window) for one in found]
        if drawn == 0:
            threshold = float(np.percentile(lowest, 100.0 - voting.keep))
        for one, weight in zip(found, lowest, strict=True):
            tokens += len(one.tokens)
            said = answer(one)
            if drawn == 0 or weight >= threshold:
                whole.append(len(one.tokens))
            if weight < threshold:
                stopped += drawn > 0
            elif said is not None:
                ballots[said] += weight
        drawn += count
        if ballots and max(ballots.values()) >= voting.consensus * sum(ballots.values()):
            break
    best = max(ballots, key=ballots.__getitem__) if ballots else None
    share = ballots[best] / sum(ballots.values()) if best is not None else float("nan")
    saved = float(np.mean(whole)) * voting.budget - tokens  # stopped completions would have been about as long
    return Vote(best, share, drawn, stopped, tokens, saved, threshold)


def sampler_of(student: Student, params: Params, prompt: Sequence[int], **settings) -> Sample:
    """Draws completions of one prompt for `vote`; `settings` as for `complete` (max_new, eos_id, policy, seed)."""

    def sample(first: int, count: int, stop: LowConfidence) -> list[Generated]:
        return complete(student, params, [prompt] * count, first=first, stop=stop, **settings)

    return sample


def lowest_mean(confidence: np.ndarray, window: int) -> float:
    """Lowest mean of `window` neighbouring entries; the plain mean of fewer; NaN of none."""
    if len(confidence) == 0:
        return float("nan")
    if len(confidence) < window:
        return float(np.mean(confidence, dtype=np.float64))
    sums = np.concatenate([[0.0], np.cumsum(confidence, dtype=np.float64)])
    return float((sums[window:] - sums[:-window]).min() / window)
