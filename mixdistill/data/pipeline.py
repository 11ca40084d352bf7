"""Pipeline: a mixture as an iterator of batches with a saved position. Grain reads, decodes, and prefetches.

Every process holds the same plan and reads only its own rows of it, so `num_targets` and the state are the same on all
of them without a word between them, and a run goes on with another number of processes, bit for bit.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from mixdistill.data.corpus import Corpus, named_weights, open_corpus
from mixdistill.data.fields import Batch
from mixdistill.data.mixture import Mixture, check_weights
from mixdistill.data.packing import Place
from mixdistill.data.planner import Planner, State
from mixdistill.data.rows import read_rows
from mixdistill.data.schedule import Schedule
from mixdistill.errors import UserError
from mixdistill.traces.tokenizer import content_ids

NUM_THREADS = 4  # reading waits for storage; decoding holds the interpreter's lock, so more would not decode faster


@dataclasses.dataclass(frozen=True)
class PlannedRows:
    """This process's rows of all train steps from `start` on, some at a time: a grain source without an end."""

    schedule: Schedule
    start: int  # train_step
    first: int  # row
    num_groups: int  # a train step
    num_rows: int  # a group

    def __len__(self) -> int:
        return 1 << 48

    def __getitem__(self, index: int) -> list[tuple[Place, ...]]:
        train_step, group = divmod(index, self.num_groups)
        plan, first = self.schedule.plan(self.start + train_step), self.first + group * self.num_rows
        return [plan.row(row) for row in range(first, first + self.num_rows)]


class Pipeline(Iterator[Batch]):
    """Batches `[rows / process_count, length]` of one mixture, without an end. Close it when done."""

    def __init__(self, corpus: Corpus, mixture: Mixture, process_index: int, process_count: int, read_ahead: int):
        self.corpus, self.mixture, self.read_ahead = corpus, mixture, read_ahead
        self.num_targets = 0  # trained on in the batch read last, of all processes
        self.traces: tuple[int, ...] = ()  # in the batch read last, of all processes
        self._num_rows = mixture.rows // process_count
        self._first = process_index * self._num_rows
        self._content = content_ids(corpus.shards[0].tokenizer)
        self._planner = Planner(corpus, mixture)
        self._begin(self._planner.start())

    @property
    def teachers(self) -> tuple[str, ...]:
        """Names in the order of teacher_id."""
        return self.corpus.teachers

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """`{teacher: {"eligible", "dropped", "truncated"}}`, in traces."""
        return self.corpus.counts

    def __next__(self) -> Batch:
        """This process's rows of the next batch, see `FIELDS`."""
        batch = next(self._batches)
        self.traces = tuple(place.trace_id for place in self._schedule.read().places)
        self.num_targets = int(sum(self.corpus.trained[trace_id] for trace_id in self.traces))
        return batch

    @property
    def weights(self) -> dict[str, float]:
        """By teacher name, once all changes are in force that are decided."""
        return dict(zip(self.teachers, self._schedule.weights, strict=True))

    def get_state(self) -> dict[str, Any]:
        """JSON values of a few kilobytes, the same on every process: the position before the next batch."""
        return {"data": _identity(self.corpus), **self._schedule.state.to_json()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to where `get_state` was called. Raises `UserError` if the shards are not those of then."""
        found = dict(state)
        if found.pop("data") != _identity(self.corpus):
            raise UserError(
                f"the data at {', '.join(self.mixture.folders)} is not what this run began with; bring the shards "
                "back, or start in another workdir"
            )
        self.close()
        self._begin(State.from_json(found))

    def set_weights(self, weights: Mapping[str, float], at_train_step: int) -> None:
        """New shares by teacher name from `at_train_step` on; teachers that are not named get none, nor do those
        without a trace to draw (a router weighs all teachers of the shards, whichever the mixture chose).

        Call it alike on every process. Raises `UserError` for unknown teachers, impossible weights, and a train step
        that may be planned already: batches that are read ahead are not taken back.
        """
        absent = {name for name in self.teachers if not self.counts[name]["eligible"]}
        weights = {name: weight for name, weight in weights.items() if name not in absent}
        check_weights(weights)
        earliest = self._schedule.state.train_step + self.read_ahead
        if at_train_step < earliest:
            raise UserError(f"weights at train step {at_train_step}: too late, {earliest} is the first that can change")
        self._schedule.set_weights(named_weights(self.corpus, weights).tolist(), at_train_step)

    def close(self) -> None:
        """Ends the reading threads. Safe to call twice."""
        self._batches.close()

    def _begin(self, state: State) -> None:
        self._schedule = Schedule(self._planner, state)
        # A part of a batch for each thread: grain's own work is by the element, and costs more than reading one row.
        groups = math.gcd(self._num_rows, NUM_THREADS)
        source = PlannedRows(self._schedule, state.train_step, self._first, groups, self._num_rows // groups)
        buffer = self.read_ahead * groups
        options = grain.ReadOptions(num_threads=min(NUM_THREADS, buffer), prefetch_buffer_size=buffer)
        parts = grain.MapDataset.source(source).map(self._read).to_iter_dataset(options)
        self._batches = iter(parts.batch(groups, batch_fn=_joined))

    def _read(self, rows: list[tuple[Place, ...]]) -> Batch:
        return read_rows(self.corpus, self._content, rows, self.mixture.length)


def _joined(parts: Sequence[Batch]) -> Batch:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def make_pipeline(mixture: Mixture, *, process_index: int = 0, process_count: int = 1, read_ahead: int = 2) -> Pipeline:
    """Opens a mixture; `read_ahead` batches are prepared while one is in use (0: none, and no threads).

    Raises `UserError` for whatever `open_corpus` refuses, and for rows that do not divide over the processes.
    """
    if mixture.rows % process_count:
        raise UserError(f"{mixture.rows} rows do not divide over {process_count} processes; change the mixture's rows")
    return Pipeline(open_corpus(mixture), mixture, process_index, process_count, read_ahead)


def _identity(corpus: Corpus) -> str:
    return json.dumps([shards.fingerprint[:16] for shards in corpus.shards])
