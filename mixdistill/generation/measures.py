"""What a batch of rollouts says of itself, as (sum, weight): rewards, their spread, pass@k, lengths, ends, failures."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from mixdistill.generation.drawn import Drawn, spread

Sums = dict[str, tuple[float, float]]


def measures(drawn: Drawn, samples: int, verifier: str | None = None) -> Sums:
    """Of all completions that were drawn, those of groups that are not trained on among them.

    "rollout/<judge>" for every judge, "reward" (their weighted sum), "spread" (standard deviation inside a group),
    "flat_groups" (share without spread), "unverified" (share that no judge could tell), "failed" (share that never came
    from the server), "ended", "length" (tokens), "repeated" (see `repeated`), "nll" (nats a token under the sampling
    policy: an estimate of its entropy), and with a `verifier` "pass@1", "pass@2", "pass@4" ... up to `samples`.
    """
    came = np.array([len(said.tokens) > 0 for said in drawn.completions])
    lengths = np.array([len(said.tokens) for said in drawn.completions])
    deviations = spread(drawn.rewards.total.reshape(-1, samples))
    found = {f"rollout/{name}": _sum(values) for name, values in drawn.rewards.parts.items()} | {
        "rollout/reward": _sum(drawn.rewards.total),
        "rollout/spread": _sum(deviations),
        "rollout/flat_groups": _sum(deviations == 0),
        "rollout/unverified": _sum(~np.isfinite(drawn.rewards.total[came])),
        "rollout/failed": _sum(~came),
        "rollout/ended": _sum([said.ended for said in drawn.completions if len(said.tokens)]),
        "rollout/length": _sum(lengths[came]),
        "rollout/repeated": _sum([repeated(said.tokens) for said in drawn.completions if len(said.tokens)]),
        "rollout/nll": (-float(sum(said.logprobs.sum() for said in drawn.completions)), float(lengths.sum())),
    }
    if verifier is not None:
        right = drawn.rewards.parts[verifier].reshape(-1, samples)
        found |= {f"rollout/pass@{k}": _sum(pass_at(right, k)) for k in _powers_of_two(samples)}
    return found


def repeated(tokens: np.ndarray) -> float:
    """Share of the runs of 4 tokens that came before in the same completion: near 1 in a loop."""
    runs = [tuple(run) for run in np.lib.stride_tricks.sliding_window_view(tokens, 4)] if len(tokens) >= 4 else []
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def pass_at(right: np.ndarray, k: int) -> np.ndarray:
    """Chance that at least one of k samples is right, for each group of `right` [groups, samples] (1, 0 or NaN), from
    all its known samples: 1 - C(n - c, k) / C(n, k), without bias (arXiv:2107.03374). NaN where fewer than k are known.
    """
    known = np.isfinite(right)
    totals = known.sum(-1)
    correct = (np.where(known, right, 0) >= 1).sum(-1)
    return np.array(
        [
            1 - math.comb(n - c, k) / math.comb(n, k) if n >= k else math.nan
            for n, c in zip(totals, correct, strict=True)
        ]
    )


def held_out_measures(drawn: Drawn) -> Sums:
    """ "held_out/<judge>", "held_out/ended" and "held_out/length" of greedy answers."""
    wanted = {f"rollout/{name}": f"held_out/{name}" for name in (*drawn.rewards.parts, "ended", "length")}
    found = measures(drawn, 1)
    return {new: found[old] for old, new in wanted.items()}


def staleness(
    lengths: Sequence[int] | np.ndarray, drawn_at: np.ndarray, train_step: int
) -> Mapping[str, tuple[float, float]]:
    """ "rollout/stale": share of the tokens that older weights drew, or nobody knows which; and "rollout/age", train
    steps between the weights that drew a token and those that learn from it, of the tokens where it is known."""
    tokens = np.asarray(lengths, np.float64)
    known = drawn_at >= 0
    stale = tokens[drawn_at != train_step].sum()
    age = (tokens * (train_step - drawn_at))[known].sum()
    return {
        "rollout/stale": (float(stale), float(tokens.sum())),
        "rollout/age": (float(age), float(tokens[known].sum())),
    }


def _powers_of_two(largest: int) -> list[int]:
    return [1 << n for n in range(largest.bit_length())]


def _sum(values) -> tuple[float, float]:
    array = np.asarray(values, np.float64)
    known = np.isfinite(array)
    return float(array[known].sum()), float(known.sum())
