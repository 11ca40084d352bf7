"""The smallest student: what comes next depends on the token before alone."""

import jax

from mixdistill.students.student import Student

AXES = {"embed": ("vocab", "embed"), "unembed": ("embed", "vocab")}


def bigram(vocab: int, width: int) -> Student:
    """Random tables `[V, D]` and `[D, V]`."""

    def init(key):
        one, two = jax.random.split(key)
        return {"embed": jax.random.normal(one, (vocab, width)), "unembed": jax.random.normal(two, (width, vocab))}

    return Student(init, lambda p, batch: p["embed"][batch["tokens"]], lambda p: p["unembed"], AXES, vocab)
