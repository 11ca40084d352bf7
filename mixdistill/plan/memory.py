"""What fills a device's memory, by class."""

from typing import Any, NamedTuple

import jax
import numpy as np

from mixdistill.training.state import TrainState


class Memory(NamedTuple):
    """Bytes of one device at the fullest moment of a train step. The first four are exact; the compiler says how much
    is temporary, and what gradients and the vocabulary pass need of that is our own count."""

    params: int
    optimizer: int
    other_state: int  # running estimates, counters
    batch: int
    gradients: int
    vocabulary_pass: int
    activations: int  # what is left of the temporary memory: activations, gathered weights, buffers

    @property
    def total(self) -> int:
        """Of all classes."""
        return sum(self)


def share(tree: Any) -> int:
    """Bytes of a device's part of abstract arrays."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


def by_class(state: TrainState, batch: Any, gradients: int, vocabulary: int, temporary: int | None) -> Memory:
    """`temporary` is the compiler's figure, None where it did not get so far: then activations are not known (0)."""
    left = None if temporary is None else max(0, temporary - gradients - vocabulary)
    if temporary is not None and left == 0:  # the compiler found room for some of it in arrays that are given back
        vocabulary = min(vocabulary, temporary)
        gradients = temporary - vocabulary
    return Memory(
        params=share(state.params),
        optimizer=share(state.opt_state),
        other_state=share((state.memory, state.train_step)),
        batch=share(batch),
        gradients=gradients,
        vocabulary_pass=vocabulary,
        activations=left or 0,
    )
