"""TrainState: all that training carries from one train step to the next, and where its arrays lie."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from mixdistill.errors import UserError
from mixdistill.memory import init_memory
from mixdistill.mesh import Rules, check_divides, sharding
from mixdistill.objective import Objective
from mixdistill.optimizers import parameter_paths, path_name
from mixdistill.students.student import Params, Student


class TrainState(NamedTuple):
    """Checkpointed whole. There is no random key in it: randomness is `fold_in(seed, train_step)`."""

    train_step: Int[Array, ""]  # how many were done
    params: Params
    opt_state: optax.OptState
    memory: dict[str, Any]  # running estimates by name, for the objectives of all stages


def init_state(
    student: Student,
    optimizer: optax.GradientTransformation,
    memory: Mapping[str, Any],
    seed: int,
    mesh: Mesh,
    rules: Rules,
    params: Params | None = None,
) -> TrainState:
    """A fresh state on `mesh`, every array made where it belongs; the same numbers on every mesh.

    `memory` holds initial values by name, or functions of the parameters. `params` that are given are taken, and gone
    from where they were. Raises `UserError` if the mesh does not divide a parameter.
    """
    if params is not None:

        def around(params: Params) -> TrainState:
            return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), _begun(memory, params))

        where = state_shardings(jax.eval_shape(around, params), student, mesh, rules)
        return jax.jit(around, out_shardings=where, donate_argnums=0)(params)
    init = _initialiser(student, optimizer, memory, seed)
    where = state_shardings(jax.eval_shape(init), student, mesh, rules)
    return jax.jit(init, out_shardings=where, compiler_options=_quick(mesh))()


def abstract_state(
    student: Student, optimizer: optax.GradientTransformation, memory: Mapping[str, Any], mesh: Mesh, rules: Rules
) -> TrainState:
    """Shapes, types and shardings of what `init_state` makes: all that restoring needs. Raises `UserError` likewise."""
    shapes = jax.eval_shape(_initialiser(student, optimizer, memory, 0))
    where = state_shardings(shapes, student, mesh, rules)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where)


def _quick(mesh: Mesh) -> dict[str, Any] | None:
    # Random bits are long programs for XLA's CPU compiler: optimised they take seconds to compile, to run once.
    return {"xla_backend_optimization_level": 0} if mesh.devices.flat[0].platform == "cpu" else None


def _initialiser(student: Student, optimizer: optax.GradientTransformation, memory: Mapping[str, Any], seed: int):
    def init() -> TrainState:
        params = student.init(jax.random.key(seed))
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), _begun(memory, params))

    return init


def _begun(memory: Mapping[str, Any], params: Params) -> dict[str, Any]:
    return {name: value(params) if callable(value) else value for name, value in memory.items()}


def state_shardings(state: Any, student: Student, mesh: Mesh, rules: Rules) -> Any:
    """A sharding for each leaf of a TrainState. Leaves follow the parameter whose path they end with, if they have its
    shape: the optimiser's, and copies of parameters in memory. Everything else is copied to all devices."""
    axes = dict(parameter_paths(student.axes))
    shapes = {path: leaf.shape for path, leaf in parameter_paths(state.params)}
    for path, shape in shapes.items():
        check_divides(mesh, rules, axes[path], shape, f"parameter {path}")

    def follow(path, leaf) -> NamedSharding:
        name = _parameter_of(path_name(path[1:]), shapes)
        if name is None or shapes[name] != leaf.shape:
            return NamedSharding(mesh, PartitionSpec())
        return sharding(mesh, rules, axes[name])

    return jax.tree_util.tree_map_with_path(follow, state)


def _parameter_of(path: str, parameters: Mapping[str, Any]) -> str | None:
    """The parameter whose path ends `path` (".../mu/layers/query" -> "layers/query"); the longest if several do."""
    parts = path.split("/")
    tails = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((tail for tail in tails if tail in parameters), None)


def initial_memory(objectives: Iterable[Objective]) -> dict[str, Any]:
    """First values of the memory of all stages: the state has one structure for the whole run, and an entry that two
    stages share lives on. Raises `UserError` if they give one name to entries of different shapes."""
    memory: dict[str, Any] = {}
    for objective in objectives:
        for name, value in init_memory(objective).items():
            if name in memory and not _same_shapes(memory[name], value):
                raise UserError(f"two stages have a memory entry {name!r} of different kinds; rename one of them")
            memory.setdefault(name, value)
    return memory


def _same_shapes(a: Any, b: Any) -> bool:
    shapes = [jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree) for tree in (a, b)]
    return shapes[0] == shapes[1]


def num_params(params: Params) -> int:
    """Number of trained numbers, from arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
