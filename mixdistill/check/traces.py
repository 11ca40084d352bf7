"""The battery's material: a student that is one table, eight random traces, batches that hold them anywhere."""

import functools
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixdistill.data.fields import FIELDS, TOP_K_FIELDS
from mixdistill.signals.mean_logit import mean_logit
from mixdistill.signals.reference import dense_stats
from mixdistill.signals.vocabulary import NAMES, vocabulary_pass
from mixdistill.signals.vocabulary_tiles import Tiles

TEACHERS = ("ann", "bob", "cid")
NUM_TRACES, LONGEST = 8, 13
ROWS, LENGTH = NUM_TRACES, 3 * LONGEST + 1
VOCABULARY, EMBED, TOP = 30, 8, 3
# Several tiles in every direction and a ragged last one, so that the tiled code is really walked through.
TILED = {"backward": "tiles", "tiles": Tiles(64, None, 32, 16)}

Arrays = dict[str, Any]


def make_params(seed: int = 0) -> dict[str, jax.Array]:
    """Parameters of the table. "probe" is zero: its gradient shows what reaches each token of each trace, wherever the
    trace lies; its last row belongs to padding."""
    random = np.random.default_rng(seed)
    shapes = {"embed": (VOCABULARY, EMBED), "place": (LENGTH, EMBED), "unembed": (EMBED, VOCABULARY)}
    params = {name: jnp.asarray(random.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    return {**params, "probe": jnp.zeros((NUM_TRACES + 1, LONGEST, EMBED), jnp.float32)}


def hidden(params: Mapping[str, jax.Array], batch: Mapping[str, Any]) -> jax.Array:
    """[B, T, D]."""
    own = params["probe"][batch["trace_id"], jnp.minimum(batch["position"], LONGEST - 1)]
    return params["embed"][batch["tokens"]] + params["place"][batch["position"]] + own


def student() -> Any:
    """The table as a Student, as far as an objective needs one."""
    return SimpleNamespace(
        hidden=hidden,
        unembed=lambda params: params["unembed"],
        vocab_size=VOCABULARY,
        soft_cap=None,
        unembed_layout="dv",
    )


def quick_jit(fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit` for programs that run a hundred times on a thousand tokens: compiling them is what costs."""

    @functools.cache  # at the first call: asking for the backend starts it
    def compiled():
        quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        return jax.jit(fn, compiler_options=quick, **options)

    return functools.wraps(fn)(lambda *args, **kwargs: compiled()(*args, **kwargs))


def make_signals(
    params: Mapping[str, jax.Array], batch: Mapping[str, Any], dense: bool = False
) -> dict[str, jax.Array]:
    """All that the student says about a batch, from the tiled pass or from the obvious dense reference."""
    h, w = hidden(params, batch), params["unembed"]
    ids = jnp.concatenate([batch["target"][..., None], batch["teacher_topk_ids"]], axis=-1)
    options = {} if dense else TILED
    stats = (dense_stats if dense else vocabulary_pass)(h, w, ids, valid=batch["valid"], top_k=20, **options)
    return {name: make(stats) for name, make in NAMES.items()} | {"mean_logit": mean_logit(h, w)}


signals = quick_jit(make_signals, static_argnames="dense")


def pull_signals_back(
    params: Any, batch: Mapping[str, Any], cotangents: Mapping[str, jax.Array], dense: bool = False
) -> Any:
    """Gradient of `params`, from those of the floating signals."""

    def differentiable(params):
        made = make_signals(params, batch, dense)
        return {name: made[name] for name in cotangents}

    return jax.vjp(differentiable, params)[1](cotangents)[0]


pull_back = quick_jit(pull_signals_back, static_argnames="dense")


def make_traces(fields: Sequence[str], params: Mapping[str, jax.Array], seed: int = 0) -> list[Arrays]:
    """Eight traces, [length] each, with every batch field and these further `fields`.

    A further field is random in (0, 1), or a log-probability if its name says so. The student finds about half of the
    targets most likely, so that gates have something to tell apart.
    """
    random = np.random.default_rng(seed)
    return [_trace(i, fields, params, random) for i in range(NUM_TRACES)]


def _trace(number: int, fields: Sequence[str], params: Mapping[str, jax.Array], random: np.random.Generator) -> Arrays:
    length = int(random.integers(6, LONGEST + 1))
    step = np.sort(np.append(random.integers(0, 4, length - 3), (0, 1, 3)))  # 0 is the prompt
    tokens = _tokens(length + 1, params, random)
    open_ids = np.stack([random.permutation(VOCABULARY)[:TOP] for _ in range(length)])
    share = random.dirichlet(np.ones(TOP + 1), length)
    given = {
        "tokens": tokens[:-1],
        "target": tokens[1:],
        "step_id": step,
        "valid": step > 0,
        "content": (step > 0) & (random.random(length) < 0.7),
        "position": np.arange(length),
        "teacher_id": np.full(length, number % len(TEACHERS)),
        "trace_id": np.full(length, number),
        "teacher_logprob": -random.exponential(size=length),
        "teacher_topk_ids": open_ids,
        "teacher_topk_logprob": np.log(share[:, :TOP]),
        "teacher_tail_logprob": np.log(share[:, TOP]),
    }
    for name in fields:
        given.setdefault(name, _sidecar(name, length, random))
    return given


def _tokens(count: int, params: Mapping[str, jax.Array], random: np.random.Generator) -> np.ndarray:
    embed, place, unembed = (np.asarray(params[name]) for name in ("embed", "place", "unembed"))
    tokens = [int(random.integers(VOCABULARY))]
    for t in range(count - 1):
        likely = int(((embed[tokens[-1]] + place[t]) @ unembed).argmax())
        tokens.append(likely if random.random() < 0.5 else int(random.integers(VOCABULARY)))
    return np.array(tokens)


def _sidecar(name: str, length: int, random: np.random.Generator) -> np.ndarray:
    return -random.exponential(size=length) if "logprob" in name else random.random(length)


def arrange(traces: Sequence[Arrays], rows: Sequence[Sequence[tuple[int, int]]]) -> Arrays:
    """The batch whose row b holds `rows[b]`, each (padding before it, number of the trace); the rest is padding."""
    table = FIELDS | TOP_K_FIELDS
    batch: Arrays = {}
    for name, values in traces[0].items():
        field = table.get(name)
        padding, dtype = (field.padding, field.dtype) if field else (0, np.float32)
        batch[name] = np.full((ROWS, LENGTH, *values.shape[1:]), padding, dtype)
    batch["segment_id"] = np.zeros((ROWS, LENGTH), np.int32)
    for b, row in enumerate(rows):
        end = 0
        for segment, (gap, number) in enumerate(row, 1):
            trace = traces[number]
            span = slice(end + gap, end := end + gap + len(trace["tokens"]))
            batch["segment_id"][b, span] = segment
            for name, values in trace.items():
                batch[name][b, span] = values
    return batch


def alone(order: Sequence[int] = range(NUM_TRACES), gaps: Sequence[int] = (0,) * NUM_TRACES) -> list:
    """Rows for `arrange`: one trace a row, in this order, behind that much padding."""
    return [[(gap, number)] for gap, number in zip(gaps, order, strict=True)]


def joined(traces: Sequence[Arrays], with_next: Sequence[bool]) -> list:
    """Rows for `arrange`: each trace in the row of the one before it where `with_next` says so and it still fits."""
    rows: list[list[tuple[int, int]]] = []
    room = 0
    for number, (trace, join) in enumerate(zip(traces, (False, *with_next), strict=True)):
        size = len(trace["tokens"])
        if join and size <= room:
            rows[-1].append((0, number))
        else:
            rows, room = [*rows, [(0, number)]], LENGTH
        room -= size
    return rows
