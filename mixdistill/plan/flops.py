"""FLOPs of a train step by our own formula: XLA counts the body of a scan over layers once.

Useful: forward and backward as `students/flops.py` counts them. Done beyond that: what is computed again in the
backward pass, and attention's upper half.
"""

from typing import Any, NamedTuple

import jax

from mixdistill.students.flops import forward_parts
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
    parts = {name: flops / length for name, flops in forward_parts(config, length).items()}
    layers, attended, head = parts["layers"], parts["attention"], parts["vocabulary"]
    useful = 3 * (layers + head + attended)
    again = {"none": 0.0, "dots": 2 * attended, "full": layers + 2 * attended}[config.remat]
    tiles = 0.0 if backward == "dense" else head  # the logits of live tokens, here of all
    return Flops(useful, useful + 3 * attended + again + tiles)
