"""What a student makes of each teacher's traces: measures, gradient sketches, undecidable disagreement. For samples, so
that a laptop answers in minutes; what a ledger holds already is read from it.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mixdistill.data.ledger import SHORT, Ledger, open_ledger
from mixdistill.data.sequences import batches
from mixdistill.diagnostics import sketch
from mixdistill.diagnostics.content import completions, sample_traces
from mixdistill.diagnostics.intervals import Estimate
from mixdistill.diagnostics.measures import TraceScores, by_teacher, trace_parts
from mixdistill.diagnostics.survey import correctness
from mixdistill.errors import UserError, unknown
from mixdistill.evaluation.disagreement import disagreements
from mixdistill.generation import contexts
from mixdistill.generation.scoring import BATCH_TOKENS, Runner
from mixdistill.students.student import Params, Student
from mixdistill.traces.record import EncodedTrace
from mixdistill.traces.shards import Shards

MAX_TOKENS = 400_000  # scored under each context, over all teachers: two minutes for 5 million parameters on two cores
SKETCH_TOKENS = 100_000  # and read for gradient sketches
LEARNED = 0.15  # nats a content token; above it the anchor is not learned, and disagreement with it means little

Fields = list[dict[str, np.ndarray]]  # of each trace


@dataclasses.dataclass(frozen=True)
class Fit:
    """Of every teacher, in the order of `shards.teachers`."""

    measures: Mapping[str, Mapping[str, Any]]  # Estimates
    undecidable: Mapping[str, Mapping[str, Any]]
    cosine: np.ndarray  # [K, K], of mean gradients
    conflict_rate: np.ndarray  # [K, K]
    anchor: str
    anchor_nll: float  # nats a content token
    traces: int
    scored_tokens: int  # that no ledger had


def fit(
    shards: Shards,
    student: Student,
    params: Params,
    *,
    fingerprint: str,
    ledger: Path | None = None,
    anchor: str | None = None,
    max_traces: int = 200,
    max_tokens: int = MAX_TOKENS,
    seed: int = 0,
) -> Fit:
    """On at most `max_traces` traces a teacher and `max_tokens` in all. `anchor` is the teacher that the student has
    learned, by default the one whose content tokens surprise it least. Raises `UserError` for an unknown anchor."""
    if anchor is not None and anchor not in shards.teachers:
        raise unknown("anchor", anchor, shards.teachers)
    numbers = choose(shards, max_traces, max_tokens, seed=seed)
    encoded = [shards[int(number)] for number in numbers]
    score = _Scorer(shards, student, params, fingerprint, ledger)
    own = score(contexts.full(), numbers, encoded)
    teacher, problem = (shards.index[name][numbers] for name in ("teacher_id", "problem"))
    parts = [trace_parts(trace) for trace in _traces(score, own, numbers, encoded, start_of(shards))]
    rows, of_row = _sketches(student, params, encoded, seed)
    measures = _plain(by_teacher(parts, teacher, problem, shards.teachers, seed=seed))
    for k, row in enumerate(measures.values()):
        row["grace"] = _grace(rows, of_row, teacher == k, problem)
    surprisal = _content_surprisal(shards, numbers, own, teacher)
    anchor = anchor or min(surprisal, key=lambda name: surprisal[name] if surprisal[name] >= 0 else math.inf)
    learned = surprisal[anchor] <= LEARNED
    size = len(shards.teachers)
    return Fit(
        measures,
        disagreements(shards, anchor, numbers, own, score.runner, seed=seed) if learned else {},
        sketch.teacher_cosines(rows, teacher[of_row], size),
        sketch.conflict_rates(rows, teacher[of_row], size),
        anchor,
        surprisal[anchor],
        len(numbers),
        score.scored_tokens,
    )


def _traces(
    score: "_Scorer", own: Fields, numbers: np.ndarray, encoded: Sequence[EncodedTrace], start: list[int]
) -> Iterator[TraceScores]:
    """Every trace under every context that is there; `alone` is scored where it lacks, the dear ones are not."""
    alone = score(contexts.alone(start), numbers, encoded)
    local, prompt, reverse = (score.kept(kind, numbers) for kind in ("local", "prompt", "reverse"))
    for i, trace in enumerate(encoded):
        yield TraceScores(
            label_logprob=own[i]["label_logprob"],
            rank=own[i]["rank"],
            entropy=own[i]["entropy"],
            confidence=own[i]["confidence"],
            step_id=trace.step_id[trace.num_prompt :],
            correct=correctness(trace),
            alone=_label(alone[i]),
            local=_label(local[i]),
            prompt=_label(prompt[i]),
            reverse=_label(reverse[i]),
        )


def _label(fields: Mapping[str, np.ndarray] | None) -> np.ndarray | None:
    return None if fields is None else fields["label_logprob"]


def _plain(measures: Mapping[str, Mapping[str, Estimate]]) -> dict[str, dict[str, Any]]:
    return {name: {m: estimate._asdict() for m, estimate in row.items()} for name, row in measures.items()}


def start_of(shards: Shards) -> list[int]:
    """What stands before a text without a prompt: the begin token, or where the tokenizer has none, the end token."""
    return list(shards.tokenizer.prefix_ids) or [shards.tokenizer.eos_id]


def choose(shards: Shards, max_traces: int, max_tokens: int, *, seed: int = 0) -> np.ndarray:
    """Numbers of random traces, ascending: of each teacher at most `max_traces`, and an equal share of the tokens, but
    at least one trace."""
    sampled = sample_traces(shards, max_traces, seed=seed)
    share = max_tokens / max(len(sampled), 1)
    kept = []
    for numbers in sampled.values():
        within = np.cumsum(shards.index["num_tokens"][numbers]) <= share
        within[:1] = True
        kept.append(numbers[within])
    return np.sort(np.concatenate([*kept, np.zeros(0, np.int64)]).astype(np.int64))


class _Scorer:
    """Fields of traces under a context: from the ledger, or by running the student."""

    def __init__(self, shards: Shards, student: Student, params: Params, fingerprint: str, ledger: Path | None):
        self._shards, self._ledger, self._fingerprint = shards, ledger, fingerprint
        self.runner = Runner(student, params, BATCH_TOKENS, None)
        self.scored_tokens = 0

    def __call__(self, context: contexts.Context, numbers: np.ndarray, encoded: Sequence[EncodedTrace]) -> Fields:
        opened = self._open(context.name)
        found = {i: opened.fields(int(n)) for i, n in enumerate(numbers) if opened is not None and int(n) in opened}
        lacking = [i for i in range(len(numbers)) if i not in found]
        offsets, fields = self.runner(context, [encoded[i] for i in lacking])
        self.scored_tokens += int(offsets[-1])
        for i, start, stop in zip(lacking, offsets[:-1], offsets[1:], strict=True):
            found[i] = {name: _float(array[start:stop]) for name, array in fields.items()}
        return [found[i] for i in range(len(numbers))]

    def kept(self, kind: str, numbers: np.ndarray) -> Sequence[dict[str, np.ndarray] | None]:
        """What the ledger holds under a context of this kind ("local": any window); None where it holds nothing."""
        for name in self._names(kind):
            opened = self._open(name)
            if opened is not None:
                return [opened.fields(int(n)) if int(n) in opened else None for n in numbers]
        return [None] * len(numbers)

    def _names(self, kind: str) -> list[str]:
        return [f"{kind}-{window}" for window in range(1, 9)] if kind == "local" else [kind]

    def _open(self, context: str) -> Ledger | None:
        if self._ledger is None or not (self._ledger / self._fingerprint[:SHORT]).is_dir():
            return None
        try:
            return open_ledger(self._ledger, self._shards, student=self._fingerprint, context=context)
        except UserError:
            return None


def _float(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _content_surprisal(shards: Shards, numbers: np.ndarray, own: Fields, teacher: np.ndarray) -> dict[str, float]:
    """Mean surprisal of each teacher's content tokens, nats; NaN without any."""
    flat = completions(shards, numbers)
    surprisal = -np.concatenate([f["label_logprob"] for f in own])
    of_token = teacher[flat.trace]
    found = {}
    for k, name in enumerate(shards.teachers):
        chosen = surprisal[flat.content & (of_token == k)]
        found[name] = float(chosen.mean()) if len(chosen) else math.nan
    return found


def _sketches(
    student: Student, params: Params, encoded: Sequence[EncodedTrace], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(rows [n, d], which of `encoded` each is): as many traces as SKETCH_TOKENS allow, every teacher's share alike."""
    random = np.random.default_rng(seed).permutation(len(encoded))
    total = np.cumsum([len(encoded[i].tokens) for i in random])
    chosen = random[total <= SKETCH_TOKENS]
    sequences = [contexts.full().sequences(encoded[i])[0] for i in chosen]
    rows = np.zeros((len(chosen), sketch.SIDE**2))
    key = jax.random.key(seed)
    for batch, spots in batches(sequences, BATCH_TOKENS):
        slots = int(batch["segment_id"].max())
        made = jax.device_get(sketch.head_gradients(student, params, batch, num_traces=_even(slots), key=key))
        for number, row, offset in spots:
            rows[number] = made[row, batch["segment_id"][row, offset] - 1]
    return rows, chosen


def _even(count: int) -> int:
    """A power of two: few shapes to compile."""
    return 1 << max(count - 1, 0).bit_length()


def _grace(rows: np.ndarray, of_row: np.ndarray, mine: np.ndarray, problem: np.ndarray) -> dict[str, Any]:
    own = mine[of_row]
    value = sketch.grace_of_traces(rows[own], problem[of_row][own])
    return {"value": value, "low": math.nan, "high": math.nan, "count": int(own.sum())}
