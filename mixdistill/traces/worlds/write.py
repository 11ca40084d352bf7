"""Traces of a world's teachers, and shards of them."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from mixdistill.errors import unknown
from mixdistill.traces.record import EncodedTrace
from mixdistill.traces.shards import Shards, write_shards
from mixdistill.traces.trace import Trace
from mixdistill.traces.worlds.world import World

Counts = Mapping[str, int]  # teacher -> traces
Coverage = Mapping[str, Sequence[int]]  # teacher -> the sizes of problems that it has traces for


def write_world(
    world: World,
    out: Path | str,
    counts: Counts,
    *,
    seed: int = 0,
    split: str = "train",
    coverage: Coverage | None = None,
    overwrite: bool = False,
) -> Shards:
    """Shards of `counts[teacher]` traces each, every teacher on problems of its own. `coverage`: by default all sizes
    of the split. Raises `UserError` for unknown teachers and splits, bad sizes, and an `out` that exists."""
    for name in (*counts, *(coverage or {})):
        if name not in world.teachers:
            raise unknown(f"teacher of world {world.name}", name, world.teachers)
    ids = world.tokenizer().inner.get_vocab()
    made = traces(world, counts, seed=seed, split=split, coverage=coverage)
    encoded = (encode_words(ids, world.tokenizer().eos_id, trace) for trace in made)
    return write_shards(encoded, out, tokenizer=world.tokenizer(), overwrite=overwrite)


def traces(
    world: World, counts: Counts, *, seed: int = 0, split: str = "train", coverage: Coverage | None = None
) -> Iterator[Trace]:
    """The traces that `write_world` writes, in its order: teacher after teacher."""
    for teacher, count in counts.items():
        sizes = (coverage or {}).get(teacher)
        for index in range(count):
            yield world.trace(world.problem(seed, split, index, stream=teacher, sizes=sizes), teacher)


def encode_words(ids: Mapping[str, int], eos_id: int, trace: Trace) -> EncodedTrace:
    """What `encode_trace` makes of a world's trace, faster: a word is a token, and the answer ends the
    text."""
    prompt, steps = trace.prompt.split(), [step.text.split() for step in trace.steps]
    words = [*prompt, *itertools.chain.from_iterable(steps)]
    tokens = np.array([*map(ids.__getitem__, words), eos_id], np.int32)
    lengths = [len(prompt), *map(len, steps)]
    lengths[-1] += 1
    step_id = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    answer = (len(words) - len(trace.answer.split()), len(words))
    return EncodedTrace(tokens, step_id, len(prompt), None, trace, answer)
