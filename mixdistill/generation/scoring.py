"""Scoring: one packed forward over all traces of some shards, written to the ledger (`data/ledger.py`).

Types: log-probabilities, entropy and confidence are float16 nats: half a thousandth of the value off at most, where one
train step changes them by more. rank is uint8: 1 is the most likely token, and it saturates at 100. confidence is
DeepConf's C, minus the mean log-probability of the 20 most likely tokens. topk_id is int32,
topk_tail_logprob the log of what is left for all other tokens.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mixdistill.data.ledger import SHORT, blocks, write_about, write_block
from mixdistill.data.placement import place
from mixdistill.data.sequences import batches
from mixdistill.diagnostics.measures import TraceScores, trace_parts
from mixdistill.errors import UserError
from mixdistill.generation.contexts import Context, full
from mixdistill.mesh import FSDP, make_mesh, shardings
from mixdistill.signals.vocabulary import NAMES, vocabulary_pass
from mixdistill.students.student import Params, Student, logits
from mixdistill.traces.record import EncodedTrace
from mixdistill.traces.shards import Shards

TOP_K, MAX_RANK = 20, 100  # DeepConf's and RSR's (arXiv:2508.15260, 2601.14249)
BATCH_TOKENS = 8192  # columns of a batch
LOWEST = float(np.finfo(np.float16).min)  # what an impossible token is written as

Progress = Callable[[int, int, int], None]  # traces done, traces in all, scored tokens so far
Forward = Callable[[Student, Params, Mapping[str, jax.Array], Any], dict[str, jax.Array]]


class Done(NamedTuple):
    """What a call scored, and what it found scored already."""

    scored_traces: int
    skipped_traces: int
    scored_tokens: int
    columns: int  # of all batches, padding included: the cost


def score(
    shards: Shards,
    student: Student,
    params: Params,
    sidecar: Path | str,
    *,
    fingerprint: str,
    name: str = "",
    contexts: Sequence[Context] | None = None,
    batch_tokens: int = BATCH_TOKENS,
    devices: Sequence[jax.Device] | None = None,
    progress: Progress = lambda *_: None,
) -> Done:
    """Adds to the ledger `sidecar` what it lacks of `shards` under every context (default: `full`).

    Rows are split over this process's devices, blocks of traces over processes; a file is written when its block is
    done, so a second call goes on from there. `fingerprint` identifies the student (see `fingerprint_of`). Raises
    `UserError` for a sidecar that cannot be written and for a student whose vocabulary is too small.
    """
    if student.vocab_size < shards.tokenizer.vocab_size:
        raise UserError(
            f"the student has a vocabulary of {student.vocab_size}, the tokenizer of {shards.path} one of "
            f"{shards.tokenizer.vocab_size}; score with a student of that tokenizer"
        )
    folder = Path(sidecar) / fingerprint[:SHORT]
    write_about(folder, {"student": fingerprint, "name": name, "tokenizer": shards.manifest["tokenizer"]})
    run = Runner(student, params, batch_tokens, devices)
    wanted = [(context, block) for context in contexts or [full()] for block in blocks(folder, shards, context.name)]
    open_blocks = [(context, block) for context, block in wanted if not block.path.is_file()]
    skipped = sum(block.stop - block.first for _, block in wanted if block.path.is_file())
    traces = tokens = 0
    for context, block in open_blocks[jax.process_index() :: jax.process_count()]:
        encoded = [shards[i] for i in range(block.first, block.stop)]
        offsets, fields = run(context, encoded)
        write_block(block.path, offsets, fields, _summary(encoded, offsets, fields) if "rank" in fields else {})
        traces, tokens = traces + block.stop - block.first, tokens + int(offsets[-1])
        progress(skipped + traces, sum(b.stop - b.first for _, b in wanted), tokens)
    return Done(traces, skipped, tokens, run.columns)


class Runner:
    """A student ready to score traces under any context."""

    def __init__(
        self, student: Student, params: Params, batch_tokens: int, devices: Sequence[jax.Device] | None = None
    ):
        self.student, self.columns, self._batch_tokens = student, 0, batch_tokens
        devices = jax.local_devices() if devices is None else devices
        self._mesh = make_mesh({"fsdp": -1}, devices) if len(devices) > 1 else None
        if self._mesh is not None:
            params = jax.device_put(params, shardings(self._mesh, FSDP, student.axes))
        self._params = params
        # jit recognises a student by what is hashable of it.
        self._model = student._replace(init=None, axes=None)  # type: ignore[arg-type]

    def __call__(self, context: Context, traces: Sequence[EncodedTrace]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(offsets, fields) of these traces, see `ledger.write_block`."""
        of_trace = [context.sequences(trace) for trace in traces]
        sequences = [sequence for of_one in of_trace for sequence in of_one]
        counts = np.array([len(s.tokens) - s.start for s in sequences], np.int64)
        begins = np.cumsum(counts) - counts
        lengths = [sum(len(s.tokens) - s.start for s in of_one) for of_one in of_trace]
        fields: dict[str, np.ndarray] = {}
        waiting = None
        multiple = 1 if self._mesh is None else self._mesh.size
        for batch, spots in batches(sequences, self._batch_tokens, multiple):
            self.columns += batch["tokens"].size
            ahead = (self._forward(context, batch), spots)  # dispatched; the one before is fetched meanwhile
            if waiting is not None:
                _collect(fields, *waiting, sequences, begins, int(counts.sum()))
            waiting = ahead
        if waiting is not None:
            _collect(fields, *waiting, sequences, begins, int(counts.sum()))
        return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), fields

    def _forward(self, context: Context, batch) -> dict[str, jax.Array]:
        where = {} if self._mesh is None else {"mesh": self._mesh}
        on_device = batch if self._mesh is None else place(batch, self._mesh, FSDP)
        return _score(self._model, self._params, on_device, context.top_k, context.label_only, **where)


@functools.partial(jax.jit, static_argnames=("student", "top_k", "label_only", "mesh"))
def _score(
    student: Student,
    params: Params,
    batch: Mapping[str, jax.Array],
    top_k: int,
    label_only: bool,
    mesh: Mesh | None = None,
) -> dict[str, jax.Array]:
    hidden = student.hidden(params, batch)
    if top_k:
        return _most_likely(student, params, hidden, min(top_k, student.vocab_size))
    stats = vocabulary_pass(
        hidden,
        student.unembed(params),
        batch["target"][..., None],
        valid=batch["valid"],
        top_k=0 if label_only else min(TOP_K, student.vocab_size),
        max_rank=MAX_RANK,
        soft_cap=student.soft_cap,
        layout=student.unembed_layout,
        **({} if mesh is None else {"mesh": mesh, "token_axes": FSDP.mesh_axes("batch")}),
    )
    label = {"label_logprob": _half(NAMES["label_logprob"](stats))}
    if label_only:
        return label
    return label | {
        "rank": stats.rank.astype(jnp.uint8),
        "entropy": _half(stats.entropy),
        "confidence": _half(-stats.confidence),
        "top1_logprob": _half(NAMES["top1_logprob"](stats)),
    }


def _most_likely(student: Student, params: Params, hidden: jax.Array, top_k: int) -> dict[str, jax.Array]:
    def row(hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.lax.top_k(jax.nn.log_softmax(logits(student, params, hidden)), top_k)

    values, ids = jax.lax.map(row, hidden)  # a row at a time: its logits [T, V] are all that is held
    tail = jnp.log1p(-jnp.minimum(jnp.exp(values).sum(axis=-1), 1.0))  # -inf where nothing is left
    return {"topk_id": ids.astype(jnp.int32), "topk_logprob": _half(values), "topk_tail_logprob": _half(tail)}


def _half(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, LOWEST).astype(jnp.float16)


def _collect(fields, made, spots, sequences, begins, total: int) -> None:
    """Copies the scored places of one batch to where they belong."""
    for name, array in jax.device_get(made).items():
        if name not in fields:
            fields[name] = np.zeros((total, *array.shape[2:]), array.dtype)
        for number, row, offset in spots:
            tokens, start = sequences[number]
            scored = array[row, offset + start - 1 : offset + len(tokens) - 1]
            fields[name][begins[number] : begins[number] + len(scored)] = scored


def _summary(traces: Sequence[EncodedTrace], offsets: np.ndarray, fields) -> dict[str, np.ndarray]:
    """`measures.trace_parts` of each trace, divided."""
    columns: dict[str, list[float]] = {}
    for trace, start, stop in zip(traces, offsets[:-1], offsets[1:], strict=True):
        span = slice(start, stop)
        of_token = {name: fields[name][span] for name in ("label_logprob", "rank", "entropy", "confidence")}
        scores = TraceScores(**of_token, step_id=trace.step_id[trace.num_prompt :])
        for name, (above, below) in trace_parts(scores).items():
            columns.setdefault(name, []).append(above / below if below > 0 else float("nan"))
    found = {name: np.array(column, np.float32) for name, column in columns.items()}
    return {name: column for name, column in found.items() if not np.isnan(column).all()}


def fingerprint_of(student: Student, params: Params) -> str:
    """sha256 over every parameter's name, shape, type and bytes, and over what the student does with them."""
    digest = hashlib.sha256(repr((student.config, student.vocab_size, student.soft_cap)).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.asarray(jax.device_get(leaf))
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
