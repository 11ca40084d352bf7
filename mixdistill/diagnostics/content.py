"""Content tokens of recorded traces: what the measures of form read. Fillers, punctuation and prompts are left out."""

import numpy as np

from mixdistill.traces.shards import Shards
from mixdistill.traces.tokenizer import content_ids


def sample_traces(shards: Shards, limit: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Numbers of at most `limit` traces of every teacher, in random order."""
    random = np.random.default_rng(seed)
    teacher = shards.index["teacher_id"]
    return {name: random.permutation(np.flatnonzero(teacher == k))[:limit] for k, name in enumerate(shards.teachers)}


def content_traces(shards: Shards, limit: int, *, seed: int = 0) -> dict[str, list[np.ndarray]]:
    """The content tokens (int32) of the completions of at most `limit` traces of every teacher, chosen at random."""
    is_content = content_ids(shards.tokenizer)

    def read(number: int) -> np.ndarray:
        trace = shards.arrays(int(number))
        completion = trace.tokens[trace.num_prompt :]
        return completion[is_content[completion]]

    return {name: [read(n) for n in numbers] for name, numbers in sample_traces(shards, limit, seed=seed).items()}
