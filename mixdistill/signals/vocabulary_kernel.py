"""The forward statistics from the TPU kernel instead of XLA, and the check that both agree on this machine."""

import concurrent.futures
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num

from mixdistill.errors import UserError
from mixdistill.kernels.vocabulary_tpu import DEPTH, LANES, lane_statistics
from mixdistill.signals.vocabulary_forward import (
    Running,
    forward,
    gather_logit,
    keep,
    largest,
    statistics,
    target_logit,
)
from mixdistill.signals.vocabulary_tiles import Spec, columns, first_column, live_first, restore, width

FEW = 128  # tokens in a tile of those whose largest logits are computed again
TOLERANCE = 1e-3  # nats, between two orders of adding the same bfloat16 products


def forward_by_kernel(
    hidden: Num[Array, "N D"], unembed: Array, ids: Int[Array, "N M"], valid: Bool[Array, "N"] | None, spec: Spec
) -> Running:
    """As `forward`. An unembedding whose width is split is gathered whole: the kernel streams it itself."""
    whole = columns(unembed, 0, width(unembed, spec), spec)
    first = first_column(unembed, spec)
    valid = jnp.ones(len(hidden), bool) if valid is None else valid
    target = target_logit(hidden, unembed, ids[:, 0], spec)
    order, *rows = live_first(valid, hidden, ids[:, 0] - first, target, multiple=1)
    lanes = lane_statistics(
        rows[0],
        whole,
        *rows[1:],
        num_tokens=valid.sum(dtype=jnp.int32),
        num_columns=(spec.num_valid_vocab or first + width(unembed, spec)) - first,
        vocab_dim=spec.vocab_dim,
        soft_cap=spec.soft_cap,
        temperature=spec.temperature,
        candidates=spec.top_k > 0,
        interpret=spec.platform != "tpu",
    )
    peak = lanes.max.max(1)
    shift = lanes.max - peak[:, None]
    scale = jnp.exp(shift)
    total, moment = (scale * lanes.total).sum(1), (scale * (lanes.moment + lanes.total * shift)).sum(1)
    top, missing = _largest(lanes.candidates, spec)
    logit = lax.map(lambda column: gather_logit(hidden, unembed, column, spec), ids.T).T[order]
    running = Running(peak, total, moment, lanes.above.sum(1).astype(jnp.int32), top, logit)
    running, missing = jax.tree.map(lambda x: restore(x, order), (running, missing))
    if spec.top_k:
        # Of the few tokens where one of the largest may be missing they are computed again.
        small = spec._replace(tiles=spec.tiles._replace(forward_tokens=FEW))
        exact = forward(hidden, unembed, ids, missing & valid, small).top
        running = running._replace(top=jnp.where(missing[:, None], exact, running.top))
    return keep(valid, running, spec)


def _largest(candidates: Float[Array, "N c"], spec: Spec) -> tuple[Float[Array, "N k"], Bool[Array, "N"]]:
    """The `top_k` largest candidates, and whether a lane may have held more of them than it gave."""
    num_tokens = len(candidates)
    if not spec.top_k:
        return jnp.zeros((num_tokens, 0), jnp.float32), jnp.zeros(num_tokens, bool)
    start = jnp.full((num_tokens, spec.top_k), -jnp.inf, jnp.float32)
    top = largest(start, candidates, candidates, spec.top_k)
    last = candidates.reshape(num_tokens, -1, DEPTH, LANES)[:, :, -1]
    return top, (last > top[:, -1, None, None]).any((1, 2))


@functools.cache
def check_parity(spec: Spec, embed: int) -> None:
    """Raises `UserError` if kernel and XLA disagree on a small random problem on this machine. Once a process."""
    # In a thread of its own: the caller may be tracing, and what is traced has no values to compare.
    with concurrent.futures.ThreadPoolExecutor(1) as alone:
        alone.submit(_check_parity, spec, embed).result()


def _check_parity(spec: Spec, embed: int) -> None:
    random = np.random.default_rng(0)
    num_tokens, num_vocab = 40, max(3000, spec.top_k + 1)
    spec = spec._replace(num_valid_vocab=num_vocab - 1 if spec.num_valid_vocab else None)
    shape = (embed, num_vocab) if spec.layout == "dv" else (num_vocab, embed)
    hidden = jnp.asarray(random.normal(size=(num_tokens, embed)), jnp.bfloat16)
    unembed = jnp.asarray(random.normal(size=shape) * 3 / embed**0.5, jnp.bfloat16)
    ids = jnp.asarray(random.integers(0, num_vocab - 1, (num_tokens, 2)), jnp.int32)

    def run(forward):
        return jax.jit(lambda h, w, i: statistics(forward(h, w, i, None, spec), spec))(hidden, unembed, ids)

    compare(run(forward_by_kernel), run(forward))


def compare(kernel, xla) -> None:
    """Raises `UserError` where the statistics of both differ by more than rounding."""
    names = ("lse", "logit", "entropy", "confidence", "rank", "top1", "tail_mass", "max_logit")
    for name, a, b in zip(names, jax.tree.leaves(kernel), jax.tree.leaves(xla), strict=True):
        # A rank may move by one where two logits are within rounding of each other.
        off = float(jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32)).max())
        if not off <= (1 if name in ("rank", "top1") else TOLERANCE):
            raise UserError(
                f"the TPU kernel and XLA disagree on this machine: {name} by {off:.2g}; use implementation='xla'"
            )
