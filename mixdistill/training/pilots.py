"""Pilots: short-lived copies of a student, each trained a little on the traces of some teachers, to see what comes.

Every pilot starts from the same parameters and sees the same number of targets, its teachers in equal shares. Nothing
is written to disk. One shape of batch is compiled, once.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mixdistill.data.fields import Batch
from mixdistill.data.packing import fill
from mixdistill.data.sequences import Row, Scored, lay_out
from mixdistill.diagnostics.content import completions
from mixdistill.errors import UserError
from mixdistill.generation.contexts import full
from mixdistill.generation.scoring import BATCH_TOKENS, Runner
from mixdistill.losses import cross_entropy
from mixdistill.objective import Objective, Term
from mixdistill.optimizers import Budget, OptimizerConfig, make_optimizer
from mixdistill.students.student import Params, Student
from mixdistill.traces.shards import Shards
from mixdistill.training.state import TrainState
from mixdistill.training.step import make_train_step

NARROWEST, WIDEST = 64, 1024  # columns of a row; a longer trace is cut off
CHOICE = 16  # sequences that wait, of which some fill a row


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long a pilot is. Raises `UserError` for what is not positive."""

    tokens: int = 80_000  # targets
    learning_rate: float = 1e-3  # at its peak
    batch_tokens: int = 1024  # columns of a train step
    seed: int = 0

    def __post_init__(self):
        for name in ("tokens", "learning_rate", "batch_tokens"):
            if not getattr(self, name) > 0:
                raise UserError(f"pilot {name} is {getattr(self, name)}; it must be positive")


class Pilots:
    """A student from which pilots start. `longest` is the length of the longest sequence that any of them will see."""

    def __init__(self, student: Student, params: Params, plan: Plan, longest: int):
        self.student, self.params, self.plan = student, params, plan
        self._width = min(max(1 << (longest - 1).bit_length(), NARROWEST), WIDEST)
        self._rows = max(plan.batch_tokens // self._width, 1)
        config = OptimizerConfig(learning_rate=plan.learning_rate, weight_decay=0.01)
        self._optimizer = make_optimizer(config, student.axes, Budget(plan.tokens, "tokens"))
        objective = Objective({"imitate": Term(cross_entropy)}).with_teachers(("all",))
        self._step = jax.jit(make_train_step(student, objective, self._optimizer), donate_argnums=0)

    def train(self, pools: Sequence[Sequence[Scored]]) -> Params:
        """Trained on as many targets of each pool. Raises `UserError` for a pool without a sequence."""
        if not all(pools):
            raise UserError("a pilot has no traces of one of its teachers to train on")
        params = jax.tree.map(jnp.copy, self.params)  # the train step takes its state with it
        state = TrainState(jnp.zeros((), jnp.int32), params, self._optimizer.init(params), {})
        stream = _in_turn(pools, self._width, np.random.default_rng(self.plan.seed))
        waiting, seen = [], 0
        while seen < self.plan.tokens:
            batch = self._batch(waiting, stream)
            seen += int(batch["valid"].sum())
            state, _ = self._step(state, batch)
        return state.params

    def _batch(self, waiting: list[Scored], stream: Iterator[Scored]) -> Batch:
        rows: list[Row] = []
        sequences: list[Scored] = []
        for _ in range(self._rows):
            while len(waiting) < CHOICE:
                waiting.append(next(stream))
            chosen = fill([sequence.columns for sequence in waiting], self._width)
            row, offset = [], 0
            for i in chosen:
                row.append((len(sequences), offset))
                sequences.append(waiting[i])
                offset += waiting[i].columns
            for i in sorted(chosen, reverse=True):
                del waiting[i]
            rows.append(row)
        batch, _ = lay_out(sequences, rows, self._rows, self._width)
        return {**batch, "teacher_id": np.zeros_like(batch["segment_id"]), "content": batch["valid"]}


def read_sequences(shards: Shards, numbers: Sequence[int] | np.ndarray, tag: int | None = None) -> list[Scored]:
    """The traces as sequences whose completions are scored; with a `tag`, that token stands before each."""
    read = [shards.arrays(int(number)) for number in numbers]
    if tag is None:
        return [Scored(trace.tokens, max(trace.num_prompt, 1)) for trace in read]
    return [Scored(np.concatenate([[tag], trace.tokens]).astype(np.int32), trace.num_prompt + 1) for trace in read]


def content_nll(
    student: Student, params: Params, shards: Shards, numbers: np.ndarray, *, skip: int = 0
) -> tuple[float, int]:
    """(mean surprisal of the content tokens of these traces after the first `skip` tokens of each, nats; how many there
    are). NaN without any."""
    flat = completions(shards, numbers)
    chosen = flat.content & (flat.place >= skip)
    if not chosen.any():
        return float("nan"), 0
    runner = Runner(student, params, BATCH_TOKENS, jax.local_devices()[:1])
    _, fields = runner(full(), [shards[int(number)] for number in numbers])
    return float(-fields["label_logprob"][chosen].mean(dtype=np.float64)), int(chosen.sum())


def _in_turn(pools: Sequence[Sequence[Scored]], width: int, random: np.random.Generator) -> Iterator[Scored]:
    """Endless: from the pool of which fewest targets were seen, each pool in random order again and again."""
    streams = [_shuffled(pool, random) for pool in pools]
    seen = np.zeros(len(pools), np.int64)
    while True:
        k = int(seen.argmin())
        sequence = next(streams[k])
        cut = Scored(sequence.tokens[: width + 1], min(sequence.start, width))
        seen[k] += len(cut.tokens) - cut.start
        yield cut


def _shuffled(pool: Sequence[Scored], random: np.random.Generator) -> Iterator[Scored]:
    while True:
        for i in random.permutation(len(pool)):
            yield pool[i]
