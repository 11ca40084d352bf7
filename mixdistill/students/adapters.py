"""Low-rank adapters (LoRA, arXiv:2106.09685) as a transform of parameters: a Student whose matrices are W + scale A B.

Parameters become {"base": the student's own, "adapters": {path: {"a", "b"}}}. The base gets no gradient and may be kept
in bfloat16, adapters are float32. It works on any Student, since it sees nothing but its parameters and their axes.
"""

import dataclasses
import fnmatch
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixdistill.errors import UserError, unknown
from mixdistill.mesh import is_axes
from mixdistill.students.config import Dtype
from mixdistill.students.student import Axes, Cache, Key, Params, Student
from mixdistill.students.trees import at, flat, nest

BASE, ADAPTERS = "base", "adapters"
FROZEN = f"{BASE}/*"  # the pattern of parameters that are not trained


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which matrices are adapted, by glob patterns of their paths, and how. Vectors that a pattern matches stay."""

    rank: int = 16
    alpha: float = 32.0  # A B is multiplied by alpha / rank
    patterns: tuple[str, ...] = ("blocks/attention/*", "blocks/mlp/*")
    base_dtype: Dtype = "bfloat16"

    def __post_init__(self):
        if self.rank < 1 or not self.alpha > 0:
            raise UserError(f"lora has rank {self.rank} and alpha {self.alpha}; both must be positive")
        if not self.patterns:
            raise UserError("lora has no patterns; give those of the parameters to adapt, as 'blocks/attention/*'")

    @property
    def scale(self) -> float:
        """What A B is multiplied by."""
        return self.alpha / self.rank


class Matrix(NamedTuple):
    """How the axes of a parameter make a matrix: `stack` of them in front, then `inputs`, then outputs."""

    stack: int
    inputs: int

    def split(self, values: Sequence) -> tuple[tuple, tuple, tuple]:
        """(stack, inputs, outputs) of a shape or of logical axes."""
        behind = self.stack + self.inputs
        return tuple(values[: self.stack]), tuple(values[self.stack : behind]), tuple(values[behind:])


def with_adapters(student: Student, lora: Lora) -> Student:
    """`student` with adapters: at first it computes the same, and only they learn. Raises `UserError` for a pattern
    that matches no matrix."""
    matrices = adapted(student.axes, lora)
    where = {path: _axes_of(at(student.axes, path), matrix) for path, matrix in matrices.items()}

    def init(key: Key) -> Params:
        base = jax.tree.map(lambda p: p.astype(lora.base_dtype), student.init(key))
        return {BASE: base, ADAPTERS: fresh_adapters(base, matrices, lora, key)}

    def merge(params: Params) -> Params:
        return merged(student, lora, params)

    return student._replace(
        init=init,
        hidden=lambda params, batch: student.hidden(merge(params), batch),
        unembed=lambda params: student.unembed(merge(params)),
        axes={BASE: student.axes, ADAPTERS: nest(where)},
        cache=None if student.cache is None else _cache(student.cache, merge),
    )


def adapted(axes: Axes, lora: Lora) -> dict[tuple[str, ...], Matrix]:
    """The matrices that `lora` adapts, by path."""
    leaves = flat(axes, is_leaf=is_axes)
    matrices = {path: matrix for path, leaf in leaves.items() if (matrix := _matrix(leaf)) is not None}
    names = {"/".join(path): path for path in matrices}
    for pattern in lora.patterns:
        if not fnmatch.filter(names, pattern):
            raise unknown("parameter path to adapt", pattern, names)
    return {
        path: matrices[path]
        for name, path in names.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in lora.patterns)
    }


def fresh_adapters(base: Params, matrices: dict[tuple[str, ...], Matrix], lora: Lora, key: Key) -> Params:
    """A is random, B is zero, both float32."""
    made = {}
    for number, (path, matrix) in enumerate(matrices.items()):
        stack, inputs, outputs = matrix.split(at(base, path).shape)
        draw = jax.random.normal(jax.random.fold_in(key, number), (*stack, *inputs, lora.rank), jnp.float32)
        made[path] = {"a": draw * math.prod(inputs) ** -0.5, "b": jnp.zeros((*stack, lora.rank, *outputs), jnp.float32)}
    return nest(made)


def merged(student: Student, lora: Lora, params: Params) -> Params:
    """Parameters of the plain `student`: W + scale A B, added in float32, in the dtype of the activations (float32 for
    a foreign module). The base gets no gradient."""
    dtype = student.config.dtype if student.config else "float32"
    base = jax.tree.map(jax.lax.stop_gradient, params[BASE])
    out = jax.tree.map(lambda leaf: leaf, base)
    for path, matrix in adapted(student.axes, lora).items():
        whole = at(base, path).astype(jnp.float32) + lora.scale * product(at(params[ADAPTERS], path), matrix)
        at(out, path[:-1])[path[-1]] = whole.astype(dtype)
    return out


def product(adapter: Params, matrix: Matrix) -> jax.Array:
    """A B with the axes of the parameter."""
    stack = "xyz"[: matrix.stack]
    inputs, outputs = "abcd"[: matrix.inputs], "efgh"[: adapter["b"].ndim - matrix.stack - 1]
    spec = f"{stack}{inputs}r,{stack}r{outputs}->{stack}{inputs}{outputs}"
    return jnp.einsum(spec, adapter["a"], adapter["b"])


def combined(student: Student, lora: Lora, adapters: Sequence[Params], weights: Sequence[float]) -> Params:
    """One set of adapters that is the weighted sum of several, exactly: their ranks stand side by side.

    For adapters that each learned from another teacher on the same base. `widened` is their Lora. Raises `UserError`
    if they are not adapters of this student by `lora`."""
    if len(adapters) != len(weights) or not adapters:
        raise UserError(f"{len(adapters)} adapters and {len(weights)} weights; give one weight each")
    joined = {}
    for path, matrix in adapted(student.axes, lora).items():
        try:
            parts = [at(adapter, path) for adapter in adapters]
        except KeyError:
            raise UserError(f"an adapter has no {'/'.join(path)}; combine those of the same patterns") from None
        scaled = [weight * part["b"] for weight, part in zip(weights, parts, strict=True)]
        joined[path] = {
            "a": jnp.concatenate([part["a"] for part in parts], axis=-1),
            "b": jnp.concatenate(scaled, axis=matrix.stack),
        }
    return nest(joined)


def widened(lora: Lora, count: int) -> Lora:
    """Of `count` adapters that were `combined`: more ranks at the same scale."""
    return dataclasses.replace(lora, rank=lora.rank * count, alpha=lora.alpha * count)


def _cache(cache: Cache, merge) -> Cache:
    return cache._replace(extend=lambda params, *arguments: cache.extend(merge(params), *arguments))


def _matrix(axes: tuple[str | None, ...]) -> Matrix | None:
    """None for a vector, stacked over layers or split into heads as it may be."""
    stack = sum(name == "layers" for name in axes)
    inner = axes[stack:]
    if len([name for name in inner if name != "head_dim"]) < 2:
        return None
    return Matrix(stack, len(inner) - 1 if inner[-1] == "embed" else 1)


def _axes_of(axes: tuple[str | None, ...], matrix: Matrix) -> Axes:
    stack, inputs, outputs = matrix.split(axes)
    return {"a": (*stack, *inputs, None), "b": (*stack, None, *outputs)}
