"""Completions of recorded traces as flat arrays, and their content tokens: what the measures of form read.

Content is what holds a letter or digit and is no filler. Prompts are left out.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mixdistill.traces.shards import Shards
from mixdistill.traces.tokenizer import content_ids


class Completions(NamedTuple):
    """One entry a completion token, the end token included; trace after trace."""

    trace: np.ndarray  # int64 [n]: 0, 1, ... in the order given
    place: np.ndarray  # int64 [n]: in its completion, from 0
    length: np.ndarray  # int64 [n]: tokens of its completion
    token: np.ndarray  # int32 [n]
    content: np.ndarray  # bool [n]


def sample_traces(shards: Shards, limit: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Numbers of at most `limit` traces of every teacher, chosen at random and in a random order of their problems, one
    for all teachers: what stands early in one teacher's and late in another's is not about the same problems."""
    random = np.random.default_rng(seed)
    teacher, problem = shards.index["teacher_id"], shards.index["problem"]
    place = random.permutation(len(shards.problems))
    chosen = (random.permutation(np.flatnonzero(teacher == k))[:limit] for k in range(len(shards.teachers)))
    ordered = (in_order_of(place, problem, numbers) for numbers in chosen)
    return dict(zip(shards.teachers, ordered, strict=True))


def in_order_of(place: np.ndarray, problem: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Traces' numbers by the `place` of their `problem`: give all teachers one order, see `conflict`."""
    return numbers[np.argsort(place[problem[numbers]], kind="stable")]


def completions(shards: Shards, numbers: Sequence[int] | np.ndarray) -> Completions:
    """The completions of these traces."""
    read = [shards.arrays(int(number)) for number in numbers]
    return flat([trace.tokens[trace.num_prompt :] for trace in read], content_ids(shards.tokenizer))


def flat(tokens: Sequence[np.ndarray], is_content: np.ndarray) -> Completions:
    """Completions from their tokens and the tokens that are content (bool [V])."""
    lengths = np.array([len(t) for t in tokens], np.int64)
    token = np.concatenate([*tokens, np.zeros(0, np.int32)]).astype(np.int32)
    place = np.arange(len(token)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    trace = np.repeat(np.arange(len(tokens)), lengths)
    return Completions(trace, place, np.repeat(lengths, lengths), token, is_content[token])


def content_traces(shards: Shards, limit: int, *, seed: int = 0, prompts: bool = False) -> dict[str, list[np.ndarray]]:
    """The content tokens of the completions of at most `limit` traces of every teacher, chosen at random; those of the
    `prompts` of the same traces instead."""
    is_content = content_ids(shards.tokenizer)

    def read(number: int) -> np.ndarray:
        trace = shards.arrays(int(number))
        part = trace.tokens[: trace.num_prompt] if prompts else trace.tokens[trace.num_prompt :]
        return part[is_content[part]]

    return {name: [read(n) for n in numbers] for name, numbers in sample_traces(shards, limit, seed=seed).items()}
