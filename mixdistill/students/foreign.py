"""Any flax NNX module as a Student."""

from collections.abc import Callable
from typing import Any, Literal

import jax
from flax import nnx
from jaxtyping import Array, Float

from mixdistill.errors import UserError
from mixdistill.students.student import Axes, Key, Params, Student, TokenBatch


def from_module[M: nnx.Module](
    build: Callable[[nnx.Rngs], M],
    *,
    hidden: Callable[[M, TokenBatch], Float[Array, "B T D"]],
    unembed: Callable[[M], Float[Array, "..."]],
    vocab_size: int,
    soft_cap: float | None = None,
    unembed_layout: Literal["dv", "vd"] = "dv",
    axes: Axes | None = None,
) -> Student:
    """A Student from `build(rngs)`, which makes the module, and two functions that use it.

    `hidden(module, batch)` gives the states after the final norm; it must keep segments apart (batch["segment_id"],
    0 is padding) and take positions from batch["position"]. `unembed(module)` gives [D, V], or [V, D] with
    unembed_layout="vd". Logical axes come from each variable's `out_sharding` unless `axes` is given; without either
    a parameter is replicated. Parameters shared inside the module are kept once. Raises `UserError` when the module
    holds state that is no parameter (batch statistics, dropout's random counters): a Student is a pure function.
    """
    abstract = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    definition, state, rest = nnx.split(abstract, nnx.Param, ...)
    others = nnx.to_flat_state(rest)
    if len(others):
        names = ", ".join(f"{_name(path)} ({type(variable).__name__})" for path, variable in others)
        raise UserError(
            f"the module holds state that is no parameter: {names}; build it without (dropout off, no statistics)"
        )
    paths = [path for path, _ in nnx.to_flat_state(state)]
    if axes is None:
        axes = _nest({path: _logical_axes(variable) for path, variable in nnx.to_flat_state(state)})

    def merge(params: Params) -> M:
        flat = [(path, _at(params, path)) for path in paths]
        return nnx.merge(definition, nnx.from_flat_state(flat))

    @jax.jit
    def init(key: Key) -> Params:
        made = nnx.to_flat_state(nnx.state(build(nnx.Rngs(key)), nnx.Param))
        return _nest({path: variable[...] for path, variable in made})

    return Student(
        init=init,
        hidden=lambda params, batch: hidden(merge(params), batch),
        unembed=lambda params: unembed(merge(params)),
        axes=axes,
        vocab_size=vocab_size,
        soft_cap=soft_cap,
        unembed_layout=unembed_layout,
    )


def _logical_axes(variable: Any) -> tuple[str | None, ...]:
    names = variable.get_metadata("out_sharding", None)
    return tuple(names) if names else (None,) * len(variable.shape)


def _nest(flat: dict[tuple, Any]) -> dict[str, Any]:
    """Nested dicts with string keys: modules in lists have whole numbers in their paths."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        node = nested
        for part in path[:-1]:
            node = node.setdefault(str(part), {})
        node[str(path[-1])] = value
    return nested


def _at(params: Params, path: tuple) -> Any:
    for part in path:
        params = params[str(part)]
    return params


def _name(path: tuple) -> str:
    return ".".join(map(str, path))
