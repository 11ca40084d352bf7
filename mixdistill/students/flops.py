"""FLOPs of the student by one formula, so that whatever is compared is compared at equal cost.

A sequence of n tokens costs, forward, 2 M n + 4 L A n (n + 1) / 2: M numbers in matrices that a token is multiplied
with (the unembedding is one, the embedding is looked up), L layers, A = heads x head_dim; a layer with a window sees
less. Learning from it costs three times as much, backward being twice the forward. Not counted: padding, norms, the
optimiser, and what is computed again in the backward pass to save memory. Of a student that is no decoder only the size
is known: 2 a parameter and token.
"""

import functools
from collections.abc import Callable

import jax

from mixdistill.students.config import DecoderConfig
from mixdistill.students.student import Student


def forward_parts(config: DecoderConfig, tokens: float) -> dict[str, float]:
    """FLOPs of one pass over a sequence of so many tokens: "layers", "attention", "vocabulary"."""
    return {
        "layers": matrices(config) * tokens,
        "attention": 4.0 * config.heads * config.head_dim * _attended(config, tokens),
        "vocabulary": 2.0 * config.vocab_size * config.embed * tokens,
    }


def matrices(config: DecoderConfig) -> float:
    """FLOPs of one token through the matrices of all layers."""
    vectors = config.embed * (2 * config.layers + 1)  # norms
    tables = (1 if config.tied else 2) * config.vocab_size * config.embed
    return 2.0 * (config.num_params - vectors - tables)


def _attended(config: DecoderConfig, tokens: float) -> float:
    """Pairs of a token and one that it sees, over all layers; layers with a window see no further than that."""
    window = config.window
    full = config.layers if window is None else len(window.full_layers)
    near = tokens if window is None else min(tokens, window.tokens)
    inside = near * (near + 1) / 2 + (tokens - near) * near
    return full * tokens * (tokens + 1) / 2 + (config.layers - full) * inside


def forward(config: DecoderConfig, tokens: float) -> float:
    """The sum of `forward_parts`."""
    return sum(forward_parts(config, tokens).values())


def learning(config: DecoderConfig, tokens: float) -> float:
    """Forward and backward."""
    return 3 * forward(config, tokens)


def learning_of(student: Student, tokens: float) -> float:
    """`learning` for any student."""
    if student.config is not None:
        return learning(student.config, tokens)
    return 6.0 * _size(student.init) * tokens


def drawing_of(student: Student, prompt: float, drawn: float) -> float:
    """Of `drawn` tokens after a prompt of so many, with a cache: each token goes once through the layers, and what is
    drawn through the vocabulary."""
    if student.config is None:
        return 2.0 * _size(student.init) * (prompt + drawn)
    parts = forward_parts(student.config, prompt + drawn)
    return parts["layers"] + parts["attention"] + forward_parts(student.config, drawn)["vocabulary"]


def forward_of(student: Student, tokens: float) -> float:
    """`forward` for any student."""
    return learning_of(student, tokens) / 3


@functools.lru_cache
def _size(init: Callable) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(init, jax.random.key(0))))
