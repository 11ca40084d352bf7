"""FLOPs of a train step by our own formula: XLA counts the body of a scan over layers once.

Useful: 6 a token for each number in a matrix that it is multiplied with, and causal attention, 6 L A T (A = heads x
head_dim, row length T). Done beyond that: what is computed again in the backward pass, and attention's upper half.
"""

from typing import Any, NamedTuple

import jax

from mixdistill.students.config import DecoderConfig
from mixdistill.students.student import Student


class Flops(NamedTuple):
    """Of one token in a train step."""

    useful: float
    done: float


def flops_per_token(student: Student, length: int, backward: str) -> Flops:
    """In rows of `length` tokens; `backward` is that of the vocabulary pass."""
    shapes: Any = jax.eval_shape(student.init, jax.random.key(0))
    config = student.config
    if config is None:  # nothing is known but the size
        count = float(sum(leaf.size for leaf in jax.tree.leaves(shapes)))
        return Flops(6 * count, 6 * count)
    layers, head, attended = matrices(config), 2.0 * config.embed * config.vocab_size, _attended(config, length)
    useful = 3 * (layers + head + attended)
    again = {"none": 0.0, "dots": 2 * attended, "full": layers + 2 * attended}[config.remat]
    tiles = 0.0 if backward == "dense" else head  # the logits of live tokens, here of all
    return Flops(useful, useful + 3 * attended + again + tiles)


def matrices(config: DecoderConfig) -> float:
    """FLOPs of one token through the matrices of all layers, forward."""
    vectors = config.embed * (2 * config.layers + 1)
    tables = (1 if config.tied else 2) * config.vocab_size * config.embed
    return 2.0 * (config.num_params - vectors - tables)


def _attended(config: DecoderConfig, length: int) -> float:
    """Scores and sums over values of one token, forward: half of the row lies before it."""
    width = config.heads * config.head_dim
    full = config.layers if config.window is None else len(config.window.full_layers)
    before = 2.0 * length * full
    if config.window is not None:
        before += 2.0 * min(length, 2 * config.window.tokens) * (config.layers - full)
    return width * before
