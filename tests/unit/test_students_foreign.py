"""A module that was not written for us becomes a Student: here a small GPT out of flax's own layers, which keeps its
layers in a list and shares its embedding with its output."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mixdistill.errors import UserError
from mixdistill.generation.sampler import complete
from mixdistill.students.foreign import from_module
from mixdistill.students.student import batch_of, logits

VOCAB, WIDTH = 19, 16


class Layer(nnx.Module):
    def __init__(self, rngs, dropout=0.0):
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("embed", "mlp"), eager_sharding=False)
        self.up = nnx.Linear(WIDTH, 2 * WIDTH, kernel_init=init, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(num_heads=2, in_features=WIDTH, decode=False, rngs=rngs)
        self.down = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout else None

    def __call__(self, x, mask):
        x = x + self.attention(self.norm(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(x)))


class Gpt(nnx.Module):
    def __init__(self, rngs, dropout=0.0):
        self.tokens = nnx.Embed(VOCAB, WIDTH, rngs=rngs)
        self.positions = nnx.Embed(64, WIDTH, rngs=rngs)
        self.shifts = nnx.List([nnx.Param(jax.random.normal(rngs(), (WIDTH,))) for _ in range(12)])  # "10" < "2"
        self.layers = nnx.List([Layer(rngs, dropout)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.output = self.tokens  # shared

    def __call__(self, batch):
        segment = batch["segment_id"]
        order = jnp.arange(segment.shape[1])
        mask = ((segment[:, :, None] == segment[:, None, :]) & (order[:, None] >= order))[:, None]
        x = self.tokens(batch["tokens"]) + self.positions(batch["position"])
        for place, shift in enumerate(self.shifts, 1):
            x = x + 0.1 * place * shift
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)


@pytest.fixture(scope="module")
def student():
    return from_module(
        Gpt,
        hidden=lambda module, batch: module(batch),
        unembed=lambda module: module.output.embedding[...],
        vocab_size=VOCAB,
        unembed_layout="vd",
    )


@pytest.fixture(scope="module")
def params(student):
    return student.init(jax.random.key(1))


def test_same_numbers_as_the_module_itself(student, params):
    batch = batch_of(jnp.arange(16, dtype=jnp.int32).reshape(2, 8))
    module = Gpt(nnx.Rngs(jax.random.key(1)))
    np.testing.assert_allclose(jax.jit(student.hidden)(params, batch), jax.jit(lambda b: module(b))(batch), atol=1e-5)
    assert logits(student, params, jax.jit(student.hidden)(params, batch)).shape == (2, 8, VOCAB)


def test_params_are_plain_dicts_with_axes(student, params):
    assert type(params) is dict
    assert set(params["shifts"]) == {str(i) for i in range(12)}
    assert "output" not in params or "tokens" not in params  # the shared embedding is there once
    assert student.axes["layers"]["0"]["up"]["kernel"] == ("embed", "mlp")
    assert student.axes["layers"]["0"]["up"]["bias"] == (None,)
    jax.tree.map(lambda leaf, axes: pytest.fail("rank") if leaf.ndim != len(axes) else None, params, student.axes)


def test_gradients_reach_every_parameter(student, params):
    batch = batch_of(jnp.arange(16, dtype=jnp.int32).reshape(2, 8))
    grads = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(logits(student, p, student.hidden(p, batch))))))(params)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    key_bias = grads["layers"]["0"]["attention"].pop("key")["bias"]
    np.testing.assert_allclose(key_bias, 0, atol=1e-4)  # the softmax does not see what is added to every key
    assert [path for path, leaf in jax.tree.leaves_with_path(grads) if float(jnp.abs(leaf).max()) < 1e-4] == []


def test_it_decodes_without_a_cache(student, params):
    results = complete(student, params, [[1, 2, 3], [4]], max_new=5, eos_id=-1)
    tokens = [1, 2, 3]
    hidden = jax.jit(student.hidden)
    for end in range(3, 8):
        row = batch_of(jnp.array([tokens + [0] * (8 - end)] * 2))  # what follows is not seen
        tokens.append(int(jnp.argmax(logits(student, params, hidden(params, row)[0, end - 1]))))
    assert results[0].tokens.tolist() == tokens[3:]


def test_state_that_is_no_parameter_is_refused():
    with pytest.raises(UserError, match=r"layers\.0\.dropout\.rngs.*dropout off"):
        from_module(
            lambda rngs: Gpt(rngs, dropout=0.1),
            hidden=lambda module, batch: module(batch),
            unembed=lambda module: module.output.embedding[...].T,
            vocab_size=VOCAB,
        )
