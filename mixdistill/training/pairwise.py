"""Undecidable disagreement of every teacher with every other: a short-lived student for each as the anchor.

The measure needs a student that has learned the anchor, so each teacher trains a copy of the given one, alone. A row
whose copy has not learned its teacher says nothing, and holds no number.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mixdistill.diagnostics.content import completions, sample_traces
from mixdistill.diagnostics.undecidable import Undecidable, undecidable_disagreement
from mixdistill.evaluation.fit import LEARNED
from mixdistill.generation.scoring import BATCH_TOKENS, Runner
from mixdistill.students.student import Params, Student
from mixdistill.traces.shards import Shards
from mixdistill.training.admission import NUM_SCORED, NUM_TAUGHT, scores
from mixdistill.training.pilots import Pilots, Plan, content_nll, read_sequences

SCORED = 0.25  # of a teacher's traces at most: the others are trained on
READ = 4000  # traces of each teacher at most
PARTS = ("undecidable_late", "undecidable", "disagreement", "decodability")


class Row(NamedTuple):
    """All others as candidates beside one anchor."""

    anchor: str
    content_nll: float  # nats, of its student on traces that it was not trained on
    others: Mapping[str, Undecidable]  # none where the anchor was not learned
    tokens: int
    seconds: float

    @property
    def learned(self) -> bool:
        """Whether the pilot was long enough for its teacher."""
        return self.content_nll <= LEARNED


def rows(shards: Shards, student: Student, params: Params, teachers: Sequence[str], plan: Plan) -> Iterator[Row]:
    """A row for each of `teachers`, when its pilot is done."""
    chosen = {name: order for name, order in sample_traces(shards, READ, seed=plan.seed).items() if name in teachers}
    held = {name: order[: min(NUM_SCORED, int(len(order) * SCORED))] for name, order in chosen.items()}
    rest = {name: order[len(held[name]) :] for name, order in chosen.items()}
    own = {name: read_sequences(shards, order) for name, order in rest.items()}
    taught = {name: completions(shards, order[:NUM_TAUGHT]) for name, order in rest.items()}
    longest = max((len(sequence.tokens) for sequences in own.values() for sequence in sequences), default=2)
    pilots = Pilots(student, params, plan, longest)
    for anchor in teachers:
        began = time.perf_counter()
        trained = pilots.train([own[anchor]])
        nll, _ = content_nll(student, trained, shards, held[anchor])
        runner = Runner(student, trained, BATCH_TOKENS, jax.local_devices()[:1])
        found = {
            name: undecidable_disagreement(
                taught[anchor], taught[name], completions(shards, held[name]), *scores(runner, shards, held[name])
            )
            for name in teachers
            if name != anchor and nll <= LEARNED and len(held[name])
        }
        yield Row(anchor, nll, found, plan.tokens, time.perf_counter() - began)


def matrices(found: Sequence[Row], teachers: Sequence[str]) -> dict[str, np.ndarray]:
    """`[K, K]` by part: row i is the anchor, column j the candidate; NaN on the diagonal and where nothing is known."""
    made = {part: np.full((len(teachers), len(teachers)), np.nan) for part in PARTS}
    for row in found:
        for name, torn in row.others.items():
            for part in PARTS:
                made[part][teachers.index(row.anchor), teachers.index(name)] = getattr(torn, part)
    return made


def table(found: Sequence[Row]) -> list[dict[str, Any]]:
    """JSON values, a dict an anchor."""
    return [
        {
            "anchor": row.anchor,
            "content_nll": row.content_nll,
            "learned": row.learned,
            "tokens": row.tokens,
            "seconds": row.seconds,
            "others": {
                name: {**torn._asdict(), "conflict": torn.conflicts(), "verdict": torn.verdict}
                for name, torn in row.others.items()
            },
        }
        for row in found
    ]
