"""What an objective costs against cross entropy: FLOPs as XLA counts them, not time.

The vocabulary pass (forward and backward, with the statistics that are asked for) and the objective's own arithmetic,
without any transformer in front: the comparison that favours cross entropy most. XLA counts no FLOPs for sorting.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from mixdistill.check.bench import Bench
from mixdistill.data.fields import FIELDS, TOP_K_FIELDS
from mixdistill.losses import cross_entropy
from mixdistill.objective import Objective, Term
from mixdistill.signals.vocabulary import NAMES, vocabulary_pass

ROWS, LENGTH, WIDTH, VOCABULARY, TOP = 4, 1024, 256, 8192, 16
SIZE = f"head of width {WIDTH}, {VOCABULARY:,} words, rows of {LENGTH:,}"
LIMIT = 1.10


def ratio(bench: Bench) -> float:
    """FLOPs a train step's head and objective take, as a multiple of plain cross entropy's."""
    return _flops(bench) / _cross_entropy()


def _flops(bench: Bench) -> float:
    return _pass(bench.objective.vocabulary_names) + _arithmetic(bench)


@functools.lru_cache(maxsize=1)
def _cross_entropy() -> float:
    return _flops(Bench(Objective({"plain": Term(cross_entropy)}), 0))


@functools.lru_cache
def _pass(names: tuple[str, ...]) -> float:
    num_ids = 1 + TOP * ("topk_logprob" in names)

    def step(hidden, unembed, ids):
        def made(hidden, unembed):
            stats = vocabulary_pass(hidden, unembed, ids, top_k=20, backward="dense")
            found = {name: NAMES[name](stats) for name in names if name in NAMES}
            return {name: x for name, x in found.items() if jnp.issubdtype(x.dtype, jnp.floating)}, found

        outputs, pull, rest = jax.vjp(made, hidden, unembed, has_aux=True)
        return rest, pull(outputs)

    hidden = _shape(ROWS, LENGTH, WIDTH)
    return _count(
        jax.jit(step).lower(hidden, _shape(WIDTH, VOCABULARY), _shape(ROWS, LENGTH, num_ids, kind=jnp.int32)).compile()
    )


def _arithmetic(bench: Bench) -> float:
    made: dict[str, Any] = dict.fromkeys(bench.objective.vocabulary_names, _shape(ROWS, LENGTH))
    for name, kind in (("label_rank", jnp.int32), ("top1", jnp.bool_)):
        if name in made:
            made[name] = _shape(ROWS, LENGTH, kind=kind)
    if "topk_logprob" in made:
        made["topk_logprob"] = _shape(ROWS, LENGTH, TOP)
    size = {"B": ROWS, "T": LENGTH, "K": TOP}
    batch = {name: _shape(ROWS, LENGTH) for name in bench.objective.fields}
    for name, field in (FIELDS | TOP_K_FIELDS).items():
        batch[name] = _shape(*(size[axis] for axis in field.shape), kind=field.dtype)
    return _count(jax.jit(bench.plain).lower(batch, made))


def _shape(*sizes: int, kind: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, kind)


def _count(program: Any) -> float:
    return float(program.cost_analysis()["flops"])
