"""The rows of `vocabulary_pass.py`: each is a function without arguments that runs one variant to its end."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mixdistill.signals.reference import dense_stats
from mixdistill.signals.vocabulary import VocabularyStats, vocabulary_pass
from mixdistill.signals.vocabulary_choice import choose_backward, default_tiles
from scripts.bench import vocabulary_peers

Row = Callable[[], float | None]
Pass = Callable[..., VocabularyStats]


class Problem(NamedTuple):
    """Random hidden states `[N, D]`, unembedding `[D, V]` and targets `[N, 1]`; each token's NLL in nats."""

    hidden: jax.Array
    unembed: jax.Array
    ids: jax.Array
    nll: np.ndarray
    platform: str
    torch_python: str | None

    @property
    def gated(self) -> dict[str, Pass]:
        """Our ways through the step, by name."""
        picked, _ = choose_backward(self.platform, len(self.hidden), self.unembed.shape[1])
        names = {backward: f"{backward} (picked by size)" if backward == picked else backward for backward in BACKWARDS}
        if not self.dense_fits:
            names.pop("dense")
        return {name: functools.partial(vocabulary_pass, backward=backward) for backward, name in names.items()}

    @property
    def dense_fits(self) -> bool:
        """Whether logits and what is made of them may be held."""
        return len(self.hidden) * self.unembed.shape[1] <= 2**31

    def threshold(self, kept: float) -> float:
        """The NLL that a share `kept` of the tokens is below."""
        return float(np.quantile(self.nll, kept)) if 0 < kept < 1 else (-1.0 if kept == 0 else np.inf)


BACKWARDS = ("dense", "tiles", "buckets")


def make_problem(shape, device: str, torch_python: str | None = None) -> Problem:
    """float32 on a CPU, bfloat16 on a GPU."""
    random = np.random.default_rng(0)
    dtype = jnp.float32 if device == "cpu" else jnp.bfloat16
    hidden = jnp.asarray(random.standard_normal((shape.tokens, shape.embed), np.float32), dtype)
    scale = 3 / shape.embed**0.5  # logits with a standard deviation of 3
    unembed = jnp.asarray(random.standard_normal((shape.embed, shape.vocab), np.float32) * np.float32(scale), dtype)
    ids = jnp.asarray(random.integers(0, shape.vocab, (shape.tokens, 1)), jnp.int32)
    stats = jax.jit(functools.partial(vocabulary_pass, backward="tiles"))(hidden, unembed, ids)
    return Problem(hidden, unembed, ids, np.asarray(stats.lse - stats.logit[:, 0]), jax.default_backend(), torch_python)


def tables(problem: Problem, kept: tuple[float, ...]) -> Iterator[tuple[str, str, dict[str, Row]]]:
    """(title, the row that ratios are taken to, rows)."""
    yield "Forward, all statistics", "bare matrix product", forward_rows(problem)
    yield "Backward alone", "three bare matrix products", backward_rows(problem, kept)
    yield "Gated step", "dense CE + statistics", step_rows(problem, kept)


def forward_rows(problem: Problem) -> dict[str, Row]:
    """Statistics without gradients."""
    given = problem.hidden, problem.unembed, problem.ids
    rows = {"bare matrix product": _ready(bare(problem), *given[:2])}
    if problem.dense_fits:
        rows["dense, separate ops"] = _ready(jax.jit(dense_stats), *given)
    for name, run in problem.gated.items():
        if "buckets" not in name:  # its forward is that of tiles
            rows[f"ours, {name}"] = _ready(jax.jit(run), *given)
    rows["ours, tiles, no top k"] = _ready(
        jax.jit(functools.partial(vocabulary_pass, backward="tiles", top_k=0)), *given
    )
    return rows


def bare(problem: Problem) -> Callable:
    """The logits of the forward's token tiles, nothing made of them and none kept."""
    tokens, vocab = len(problem.hidden), problem.unembed.shape[1]
    size = min(default_tiles(problem.platform, tokens, vocab).forward_tokens, tokens)

    def run(hidden, unembed):
        def tile(h):
            z = jax.lax.dot_general(h, unembed, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
            return jax.lax.optimization_barrier(z)[:, 0]

        return jax.lax.map(tile, hidden.reshape(-1, size, hidden.shape[1]))

    return jax.jit(run)


def backward_rows(problem: Problem, kept: tuple[float, ...]) -> dict[str, Row]:
    """Both gradients from the residuals of a forward that is not counted."""
    product = bare(problem)
    given = problem.hidden, problem.unembed
    rows = {"three bare matrix products": _ready(lambda h, w: [product(h, w) for _ in range(3)], *given)}
    for name, run in problem.gated.items():

        def outputs(hidden, unembed, run=run):
            stats = run(hidden, unembed, problem.ids)
            return stats.lse, stats.logit

        _, pull_back = jax.vjp(jax.jit(outputs), *given)
        apply = jax.jit(lambda pull_back, cotangents: pull_back(cotangents))
        for share in kept:
            weight = jnp.asarray(problem.nll <= problem.threshold(share), jnp.float32)
            rows[f"ours, {name}, f={share}"] = _ready(apply, pull_back, (weight, -weight[:, None]))
    return rows


def step_rows(problem: Problem, kept: tuple[float, ...]) -> dict[str, Row]:
    """Forward, gate, loss and both gradients; every statistic is returned."""
    given = problem.hidden, problem.unembed
    rows = {}
    if problem.dense_fits:
        rows["dense CE + statistics"] = _ready(step(dense_stats, problem, 0.5), *given)
        rows["optax CE, no statistics"] = _ready(jax.jit(jax.value_and_grad(optax_loss, (0, 1))), *given, problem.ids)
    for name, run in problem.gated.items():
        rows |= {f"ours, {name}, f={share}": _ready(step(run, problem, share), *given) for share in kept}
    return rows | vocabulary_peers.rows(problem, problem.torch_python)


def step(run: Pass, problem: Problem, kept: float) -> Callable:
    """Value and gradients of the NLL of the tokens below a threshold."""
    threshold = problem.threshold(kept)

    def loss(hidden, unembed):
        stats = run(hidden, unembed, problem.ids)
        nll = stats.lse - stats.logit[:, 0]
        gate = jax.lax.stop_gradient(nll <= threshold)
        return jnp.where(gate, nll, 0.0).sum(), stats

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


def optax_loss(hidden, unembed, ids):
    """Dense cross entropy."""
    logits = jnp.einsum("nd,dv->nv", hidden, unembed, preferred_element_type=jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 0]).sum()


def _ready(fn: Callable, *args: Any) -> Row:
    def row() -> None:
        jax.block_until_ready(fn(*args))

    return row
