"""Optimisers: one frozen configuration -> an optax chain whose learning rate reads how much of the run is done.

A run is budgeted in train steps or in tokens. The schedule is a function of the share of that budget already spent,
so a recipe whose rows, gates or mixture change keeps its shape, and arms of equal tokens decay at equal tokens.
"""

import dataclasses
import fnmatch
import math
import typing
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from mixdistill.errors import UserError, unknown
from mixdistill.mesh import is_axes

Moments = Literal["float32", "bfloat16", "factored"]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with a linear warm-up and a cosine decay.

    `moments` "bfloat16" rounds the first moment; "factored" is Adafactor (arXiv:1804.04235): second moments of rows
    and columns of a matrix, no first one, updates clipped to a root mean square of 1; b1, b2 and eps are not read.
    Matrices decay, vectors (norms, biases) do not. `frozen` are glob patterns of parameter paths ("embed/*"): those
    get neither gradient nor decay. Raises `UserError` for a value outside its range.
    """

    learning_rate: float = 3e-4  # at its peak
    warmup: float = 0.05  # share of the run
    final: float = 0.1  # learning rate at the end, as a share of the peak
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float | None = 1.0  # largest global gradient norm
    moments: Moments = "float32"  # what a parameter of N numbers keeps: 2 N floats, 1.5 N, or rows and columns alone
    frozen: tuple[str, ...] = ()

    def __post_init__(self):
        bounds = {"warmup": (0, 1), "final": (0, 1), "b1": (0, 1), "b2": (0, 1)}
        positive = {name: (0, math.inf) for name in ("learning_rate", "eps", "weight_decay", "clip")}
        for name, (low, high) in {**bounds, **positive}.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UserError(f"optimizer {name} is {value}; it must lie between {low} and {high}")
        if self.moments not in typing.get_args(Moments):
            raise unknown("optimizer moments", self.moments, typing.get_args(Moments))


class Budget(NamedTuple):
    """How long a run is: `size` train steps, or `size` tokens (targets seen, whether a gate keeps them or not)."""

    size: int
    unit: Literal["train_steps", "tokens"]


class ProgressState(NamedTuple):
    """The share of the budget that was spent before the next update, 0 to 1."""

    done: Float[Array, ""]


def learning_rate(config: OptimizerConfig, done: Float[Array, ""] | float) -> Float[Array, ""]:
    """The learning rate when the share `done` of the budget is spent; 0 at the very start if there is a warm-up."""
    done = jnp.clip(jnp.asarray(done, jnp.float32), 0.0, 1.0)
    decay = (done - config.warmup) / max(1.0 - config.warmup, 1e-9)
    cosine = config.final + (1.0 - config.final) * 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(decay, 0.0, 1.0)))
    rising = done / config.warmup if config.warmup else 1.0
    return config.learning_rate * jnp.where(done < config.warmup, rising, cosine)


def make_optimizer(config: OptimizerConfig, axes: Any, budget: Budget) -> optax.GradientTransformationExtraArgs:
    """The chain for parameters with these logical `axes` (a Student's). `update` needs `tokens`, the targets seen.

    Raises `UserError` for a `frozen` pattern that matches no parameter.
    """
    labels = frozen_labels(config.frozen, axes)
    chain = optax.chain(
        optax.clip_by_global_norm(config.clip) if config.clip is not None else optax.identity(),
        _scale(config),
        optax.add_decayed_weights(config.weight_decay, mask=_decays(axes)),
        scale_by_progress(config, budget),
    )
    if not config.frozen:
        return chain
    return optax.partition({False: chain, True: optax.set_to_zero()}, labels)


def _scale(config: OptimizerConfig) -> optax.GradientTransformation:
    if config.moments == "factored":
        return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
    return optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=config.moments)


def scale_by_progress(config: OptimizerConfig, budget: Budget) -> optax.GradientTransformationExtraArgs:
    """Multiplies by minus the learning rate, then counts one train step or `tokens`: all the state the schedule has."""

    def init(params: Any) -> ProgressState:
        del params
        return ProgressState(jnp.zeros((), jnp.float32))

    def update(updates, state: ProgressState, params=None, *, tokens, **unused):
        del params, unused
        rate = learning_rate(config, state.done)
        spent = (1.0 if budget.unit == "train_steps" else tokens) / budget.size
        return jax.tree.map(lambda u: -rate.astype(u.dtype) * u, updates), ProgressState(state.done + spent)

    return optax.GradientTransformationExtraArgs(init, update)


def progress(opt_state: optax.OptState) -> Float[Array, ""]:
    """The share of the budget spent, from anywhere inside an optimiser's state; NaN for an optimiser without one."""
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, ProgressState))
    return next((leaf.done for leaf in leaves if isinstance(leaf, ProgressState)), jnp.full((), jnp.nan, jnp.float32))


def frozen_labels(frozen: tuple[str, ...], axes: Any) -> Any:
    """A tree of bools beside `axes`: True where a pattern of `frozen` matches the parameter's path."""
    paths = [path for path, _ in parameter_paths(axes)]
    for pattern in frozen:
        if not fnmatch.filter(paths, pattern):
            raise unknown("parameter path to freeze", pattern, paths)
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(fnmatch.fnmatchcase(path_name(path), pattern) for pattern in frozen), axes, is_leaf=is_axes
    )


def parameter_paths(tree: Any) -> list[tuple[str, Any]]:
    """("layers/attention/query", leaf) for every leaf of params or of their axes."""
    return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_axes)]


def path_name(path: tuple) -> str:
    """A key path of nested dicts and tuples, joined by "/"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _decays(axes: Any) -> Any:
    # Scanned layers stack norms and biases into matrices: "layers" and "head_dim" do not make a vector a matrix.
    return jax.tree.map(
        lambda leaf: len([name for name in leaf if name not in ("layers", "head_dim")]) > 1, axes, is_leaf=is_axes
    )
