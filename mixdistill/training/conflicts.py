"""Each teacher's gradient within a train step: how they point, and PCGrad. See `recipe.TeacherGradients`.

A projected gradient is a sum of the given ones, so PCGrad needs no more than their inner products (the Gram matrix):
`coefficients` turns those into one factor a teacher, at least 1, and the gradient is the sum of factor times gradient.
In sketch mode the inner products are those of random projections (Rademacher, SIDE x SIDE numbers a teacher) of
sum_t h_t dL/dh_t: the gradient of an identity layer on top of the last hidden states h.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mixdistill.objective import Objective, Sums, Tally, divisors, sums
from mixdistill.recipe.parameters import TeacherGradients
from mixdistill.students.student import Student

SIDE = 32
Accumulate = Callable[[Callable[[Any], Any], Any, int], Any]


def gradient_of_teachers(
    setting: TeacherGradients,
    objective: Objective,
    student: Student,
    params: Any,
    batch: Any,
    num_parts: int,
    context: dict[str, Any],
    accumulate: Accumulate,
) -> tuple[Any, Sums, dict[str, Tally]]:
    """The gradient, projected if the setting says so; the sums of all microbatches; and tallies: per teacher
    "teacher/gradient_cosine" (teachers with a gradient), and "gradient/opposed", of all pairs."""
    count, context = len(objective.teachers), {**context, "by_teacher": True}
    target = None if setting.towards is None else objective.teachers.index(setting.towards)
    find = _exact if setting.mode == "exact" else _sketched
    # One part needs no loop: the program is that of an ordinary step.
    over = accumulate if num_parts > 1 else lambda part_sums, batch, _: part_sums(batch)
    gram, finish = find(objective, student, params, batch, num_parts, context, over)
    order = jax.random.key(setting.seed)
    factors = coefficients(gram, jax.random.fold_in(order, context["train_step"])) if setting.project else None
    gradient, total = finish(jnp.ones(count) if factors is None else factors)
    gradient = jax.tree.map(lambda g, p: g.astype(p.dtype), gradient, params)
    return gradient, total._replace(loss=total.loss.sum(axis=-1)), measured(gram, target)


def coefficients(gram: Float[Array, "K K"], key: Array) -> Float[Array, "K"]:
    """PCGrad (arXiv:2001.06782) in the coordinates of the given gradients, from their inner products: the factors with
    which they add up to the sum of all projected ones. Every gradient meets the others in a random order of its own."""
    count = len(gram)

    def project(i: Any, key: Array) -> Float[Array, "K"]:
        def against(c: Float[Array, "K"], k: Any) -> tuple[Float[Array, "K"], None]:
            product = c @ gram[:, k]
            opposes = (product < 0) & (k != i) & (gram[k, k] > 0)
            return c.at[k].add(jnp.where(opposes, -product / jnp.where(gram[k, k] > 0, gram[k, k], 1.0), 0.0)), None

        return jax.lax.scan(against, jax.nn.one_hot(i, count), jax.random.permutation(key, count))[0]

    return jax.vmap(project)(jnp.arange(count), jax.random.split(key, count)).sum(axis=0)


def measured(gram: Float[Array, "K K"], target: int | None) -> dict[str, Tally]:
    """The tallies of `gradient_of_teachers` from inner products. A cosine is with teacher `target`, or with the sum of
    all other teachers."""
    count = len(gram)
    other = 1.0 - jnp.eye(count) if target is None else jnp.tile(jnp.eye(count)[target], (count, 1))
    norm, product = jnp.sqrt(jnp.diag(gram)), (gram * other).sum(axis=1)
    length = jnp.sqrt(jnp.maximum(jnp.einsum("ki,ij,kj->k", other, gram, other), 0.0))
    has = (norm > 0) & (length > 0)
    cosine = jnp.where(has, product / jnp.where(has, norm * length, 1.0), 0.0)
    pairs = jnp.triu(has_both := (norm[:, None] > 0) & (norm > 0), 1)
    return {
        "teacher/gradient_cosine": Tally(cosine, has.astype(jnp.float32)),
        "gradient/opposed": Tally((pairs & has_both & (gram < 0)).sum(dtype=jnp.float32), pairs.sum(dtype=jnp.float32)),
    }


def _exact(objective, student, params, batch, num_parts, context, over):
    """Every teacher's gradient, held `[K, ...]`."""

    def part_sums(part):
        def losses(params):
            total = sums(objective, student, params, part, **context)
            return total.loss, total

        loss, pull_back, total = jax.vjp(losses, params, has_aux=True)
        return total, jax.lax.map(lambda unit: pull_back(unit.reshape(loss.shape))[0], jnp.eye(loss.size))

    total, gradients = over(part_sums, batch, num_parts)
    by = divisors(objective, total)

    def of_teachers(x):
        split = x.astype(jnp.float32).reshape(len(by), -1, *x.shape[1:])
        return jnp.tensordot(1 / by, split, 1)

    gradients = jax.tree.map(of_teachers, gradients)
    flat = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(gradients)]
    products = [jnp.einsum("kn,ln->kl", x, x, precision=jax.lax.Precision.HIGHEST) for x in flat]
    gram = functools.reduce(jnp.add, products)
    return gram, lambda factors: (jax.tree.map(lambda g: jnp.tensordot(factors, g, 1), gradients), total)


def _sketched(objective, student, params, batch, num_parts, context, over):
    """Inner products from a pass over the vocabulary alone; the gradient in one backward pass."""
    fixed = jax.lax.stop_gradient(params)
    top = student._replace(hidden=lambda hidden, _: hidden, unembed=lambda _: student.unembed(fixed))
    teachers = jnp.arange(len(objective.teachers))

    def part_sketches(part):
        hidden = student.hidden(fixed, part)
        signs = [jax.random.rademacher(key, (hidden.shape[-1], SIDE), jnp.float32) for key in _keys()]
        member = (part["teacher_id"][..., None] == teachers) & part["valid"][..., None]

        def losses(hidden):
            total = sums(objective, top, hidden, part, **context)
            return total.loss.sum(axis=-1), total

        loss, pull_back, total = jax.vjp(losses, hidden, has_aux=True)

        def sketch(unit):
            (slope,) = pull_back(unit)
            sides = [x.astype(jnp.float32) @ sign for x, sign in zip((hidden, slope), signs, strict=True)]
            return jnp.einsum("btk,bti,btj->kij", member.astype(jnp.float32), *sides) / SIDE

        return total, jax.lax.map(sketch, jnp.eye(loss.size))

    total, sketches = over(part_sketches, batch, num_parts)
    by = divisors(objective, total)
    flat = jnp.tensordot(1 / by, sketches, 1).reshape(len(teachers), -1)
    gram = jnp.einsum("kn,ln->kl", flat, flat, precision=jax.lax.Precision.HIGHEST)

    def finish(factors):
        def part_gradient(part):
            def loss(params):
                total = sums(objective, student, params, part, **context)
                return (total.loss * factors / by[:, None]).sum(), total

            gradient, total = jax.grad(loss, has_aux=True)(params)
            return total, gradient

        total, gradient = over(part_gradient, batch, num_parts)
        return gradient, total

    return gram, finish


def _keys() -> Array:
    return jax.random.split(jax.random.key(0))
