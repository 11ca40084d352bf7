"""The train step: gradients of sums, divided once; memory from the same sums; an update that is whole or not at all.

`make_train_step` is the function to read, `make_eval_step` counts without learning. `compile_train_step` is the only
place where they meet a mesh.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mixdistill.memory import update_memory
from mixdistill.mesh import Rules, check_divides, sharding
from mixdistill.objective import Objective, Sums, Tally, combine, divisors, mean_gradient, sums, sums_and_gradients
from mixdistill.optimizers import frozen_labels, progress
from mixdistill.recipe.parameters import TeacherGradients
from mixdistill.students.attention import attend, choose
from mixdistill.students.student import Student
from mixdistill.training.conflicts import gradient_of_teachers
from mixdistill.training.state import TrainState, state_shardings

Batch = dict[str, jax.Array]
Tallies = dict[str, Tally]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Tallies]]
EvalStep = Callable[[TrainState, Batch], Sums]


def make_train_step(
    student: Student,
    objective: Objective,
    optimizer: optax.GradientTransformationExtraArgs,
    *,
    num_microbatches: int = 1,
    frozen: tuple[str, ...] = (),
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    options: Mapping[str, Any] | None = None,
    teacher_gradients: TeacherGradients | None = None,
) -> TrainStep:
    """A pure function (state, batch) -> (state, tallies).

    The batch is split by rows into `num_microbatches`, whose sums are added and divided once, so the split changes
    nothing but the order of float32 additions. A train step whose loss or update is not finite, or that keeps no
    token, changes nothing but `train_step`, and is counted in the tally "optimizer/skipped". Parameters whose path
    matches a pattern of `frozen` get no gradient (give the optimiser the same patterns). With `mesh` and `rules` a
    vocabulary that the rules split stays split. `options` go to the vocabulary pass and change speed, not results.
    `teacher_gradients` compares the teachers' gradients, and may project conflicts out.
    """
    student = freeze(student, frozen)
    fixed = {"mesh": mesh, "rules": rules, "options": options}

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Tallies]:
        context = {"train_step": state.train_step, "memory": state.memory, **fixed}
        given, compared = (objective, student, state.params, batch, num_microbatches, context), {}
        if teacher_gradients is None:
            gradient, total = _gradient(*given)
        else:
            gradient, total, compared = gradient_of_teachers(teacher_gradients, *given, _accumulate)
        loss, tallies = combine(objective, total)
        tallies |= compared
        updates, opt_state = optimizer.update(
            gradient, state.opt_state, state.params, tokens=total.valid.astype(jnp.float32)
        )
        params: Any = optax.apply_updates(state.params, updates)
        memory = update_memory(objective, state.memory, tallies, state.train_step)
        new = TrainState(state.train_step, params, opt_state, memory)
        update_norm = optax.global_norm(updates)
        usable = jnp.isfinite(loss.sum) & jnp.isfinite(update_norm) & (loss.weight > 0)
        new = jax.tree.map(lambda after, before: jnp.where(usable, after, before), new, state)
        measured = {
            "optimizer/grad_norm": optax.global_norm(gradient),
            "optimizer/update_norm": update_norm,
            "optimizer/progress": progress(new.opt_state),
            "optimizer/skipped": 1.0 - usable.astype(jnp.float32),
        }
        tallies |= {name: Tally(value, jnp.ones((), jnp.float32)) for name, value in measured.items()}
        tallies |= router_weights(objective, new.memory)
        return new._replace(train_step=state.train_step + 1), tallies

    return train_step


def make_eval_step(
    student: Student, objective: Objective, *, mesh: Mesh | None = None, rules: Rules | None = None
) -> EvalStep:
    """A pure function (state, batch) -> sums: what a train step would count, with nothing learned.

    Sums of any batches may be added, leaf by leaf; `objective.combine` makes tallies of them, as of one large batch.
    Of the state it reads `train_step`, `params` and the objective's memory; the rest may be None.
    """

    def eval_step(state: TrainState, batch: Batch) -> Sums:
        context = {"train_step": state.train_step, "memory": state.memory, "mesh": mesh, "rules": rules}
        return sums(objective, student, state.params, batch, **context)

    return eval_step


def router_weights(objective: Objective, memory: dict[str, Any]) -> Tallies:
    """ "router/<name>": each teacher's share of the batches to come, for memory entries that steer the mixture; weight
    0 while the router is not ready."""
    routers = [name for name, entry in objective.memory.items() if entry.every]
    return {
        f"router/{name}": Tally(
            memory[name]["weights"] * memory[name]["ready"],
            jnp.broadcast_to(memory[name]["ready"], memory[name]["weights"].shape).astype(jnp.float32),
        )
        for name in routers
    }


def freeze(student: Student, patterns: tuple[str, ...]) -> Student:
    """The student with no gradient to the parameters whose path matches a pattern."""
    if not patterns:
        return student
    fixed = frozen_labels(patterns, student.axes)

    def stop(params: Any) -> Any:
        return jax.tree.map(lambda fix, p: jax.lax.stop_gradient(p) if fix else p, fixed, params)

    return student._replace(
        hidden=lambda params, batch: student.hidden(stop(params), batch),
        unembed=lambda params: student.unembed(stop(params)),
    )


def compile_train_step(step: TrainStep, mesh: Mesh, rules: Rules, student: Student) -> TrainStep:
    """The compiled step: parameters and optimiser state stay where `rules` put them, tallies are on all devices.

    The state is donated: the one given in is gone. Raises `UserError`, at the first call, if the mesh does not divide
    a parameter or the rows.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())

    def sharded(state: TrainState, batch: Batch) -> tuple[TrainState, Tallies]:
        for name, array in batch.items():
            check_divides(mesh, rules, ("batch", "sequence"), array.shape[:2], f"batch field {name}")
        batch = _split_rows(batch, mesh, rules)
        with attend(choose(mesh, rules)):
            state, tallies = step(state, batch)
        state = jax.lax.with_sharding_constraint(state, state_shardings(state, student, mesh, rules))
        return state, jax.lax.with_sharding_constraint(tallies, jax.tree.map(lambda _: everywhere, tallies))

    return jax.jit(sharded, donate_argnums=0)


def compile_change(
    change: Callable[[TrainState, Any], TrainState], mesh: Mesh, rules: Rules, student: Student
) -> Callable[[TrainState, Any], TrainState]:
    """A compiled change of the state between train steps, which is donated and stays where `rules` put it."""

    def sharded(state: TrainState, given: Any) -> TrainState:
        return jax.lax.with_sharding_constraint(change(state, given), state_shardings(state, student, mesh, rules))

    return jax.jit(sharded, donate_argnums=0)


def _split_rows(batch: Batch, mesh: Mesh, rules: Rules) -> Batch:
    """Tokens of a row on the devices that the rules give them; a batch is placed by whole rows."""
    if not rules.mesh_axes("sequence"):
        return batch
    return jax.lax.with_sharding_constraint(batch, sharding(mesh, rules, ("batch", "sequence")))


def _gradient(
    objective: Objective, student: Student, params: Any, batch: Batch, num_parts: int, context: dict[str, Any]
) -> tuple[Any, Sums]:
    """The gradient of the loss, and the sums of all microbatches."""

    def mean_loss(params):
        total = sums(objective, student, params, batch, **context)
        return (total.loss / jax.lax.stop_gradient(divisors(objective, total))).sum(), total

    if num_parts == 1:  # every denominator is known before the one backward pass
        return jax.grad(mean_loss, has_aux=True)(params)
    total, gradients = _accumulate(
        lambda part: sums_and_gradients(objective, student, params, part, **context), batch, num_parts
    )
    gradient = mean_gradient(objective, total, gradients)
    return jax.tree.map(lambda g, p: g.astype(p.dtype), gradient, params), total


def _accumulate(part_sums: Callable[[Batch], Any], batch: Batch, num_parts: int) -> Any:
    """`part_sums` added in float32 over the parts of `batch`; one part in memory at a time."""
    # Part m holds rows m, m + num_parts, ...: every device has some of each, so splitting moves no data.
    parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, num_parts, *x.shape[1:]), 1, 0), batch)
    shapes = jax.eval_shape(part_sums, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), shapes)
    total, _ = jax.lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, part_sums(part)), None), zeros, parts)
    return total
