"""What a student makes of traces that it was not trained on: every trace once, counted in tallies."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from mixdistill.data.corpus import Corpus
from mixdistill.data.fields import Batch
from mixdistill.data.packing import Place
from mixdistill.data.rows import read_rows
from mixdistill.data.sequences import fill_rows
from mixdistill.objective import Objective, Sums, Tally, combine
from mixdistill.traces.tokenizer import content_ids

EvalStep = Callable[[Any, Any], Sums]  # (state, batch); see `training.step.make_eval_step`


def held_out(eval_step: EvalStep, state: Any, batches: Iterable[Batch], objective: Objective) -> dict[str, Tally]:
    """The tallies of all batches together, as numpy arrays; there is at least one batch."""
    found = (jax.device_get(eval_step(state, batch)) for batch in batches)
    total = functools.reduce(lambda a, b: jax.tree.map(np.add, a, b), found)
    return jax.device_get(combine(objective, total)[1])


def one_pass(corpus: Corpus, rows: int, length: int) -> Iterator[Batch]:
    """Batches [rows, length] that hold every trace that may be drawn from `corpus` once; the last is filled with
    padding. `corpus` was opened for rows of this `length`."""
    content = content_ids(corpus.shards[0].tokenizer)
    numbers = np.concatenate(corpus.pools).tolist()
    packed = fill_rows(numbers, corpus.footprint[numbers].tolist(), length)
    for first in range(0, len(packed), rows):
        some = packed[first : first + rows] + [[]] * max(first + rows - len(packed), 0)
        yield read_rows(corpus, content, [_places(row) for row in some], length)


def _places(row: list[tuple[int, int]]) -> list[Place]:
    return [Place(number, 0, offset) for number, offset in row]
