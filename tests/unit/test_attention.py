"""Every attention program that runs here equals the reference, packed or not; one that mixes segments is found out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixdistill.mesh import CONTEXT, FSDP, make_mesh, preset
from mixdistill.students import families, layers
from mixdistill.students.attention import How, attend, choose, cudnn, fits_splash, keeps_segments_apart
from mixdistill.students.config import Window
from mixdistill.students.decoder import make_student

LENGTH = 256
CONFIG = dataclasses.replace(
    families.tiny(32), embed=16, layers=2, heads=2, kv_heads=1, head_dim=128, mlp=16, window=Window(40, (1,), 100.0)
)
CUTS = (100, 156)


def row(lengths):
    segment = np.repeat(np.arange(1, len(lengths) + 1), lengths).astype(np.int32)[None]
    position = np.concatenate([np.arange(n) for n in lengths]).astype(np.int32)[None]
    tokens = np.random.default_rng(0).integers(0, 32, segment.shape).astype(np.int32)
    return {"tokens": tokens, "segment_id": segment, "position": position}


def total(how, batch):
    student = make_student(CONFIG)

    def run(params):
        with attend(how):
            hidden = student.hidden(params, batch)
        return jnp.sum(jnp.sin(3 * hidden)), hidden

    return jax.jit(jax.value_and_grad(run, has_aux=True))(student.init(jax.random.key(0)))


@pytest.fixture(scope="module")
def reference():
    return total(How(), row((100, 156)))


def test_splash_equals_the_reference_on_packed_rows(reference):
    """Forward and gradients, a windowed and a full layer, two segments; the kernel is interpreted."""
    found = total(How("splash", interpret=True), row((100, 156)))
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3, rtol=2e-3)  # noqa: E731
    jax.tree.map(close, found, reference)


@pytest.mark.parametrize("backend", ["xla", "splash"])
def test_packed_equals_unpacked(backend):
    config = dataclasses.replace(CONFIG, layers=1, window=None)
    student = make_student(config)
    params = student.init(jax.random.key(0))
    batch = row((128, 128))

    @jax.jit
    def run(batch):
        with attend(How(backend, interpret=True)):
            return student.hidden(params, batch)[0]

    halves = [{**{name: x[:, half] for name, x in batch.items()}} for half in (slice(0, 128), slice(128, 256))]
    alone = np.concatenate([run(half) for half in halves])
    np.testing.assert_allclose(run(batch), alone, atol=1e-4)


def test_a_program_that_mixes_segments_is_found_out():
    def mixes(query, key, value, mask):
        return layers.attention(query, key, value, jnp.tril(jnp.ones_like(mask)))

    def broken(*arguments):
        raise RuntimeError("no such library")

    def reference(*arguments):
        return layers.attention(*arguments)

    assert keeps_segments_apart(reference)
    assert not keeps_segments_apart(mixes)
    assert not keeps_segments_apart(broken)
    assert not keeps_segments_apart(cudnn)  # there is none here


def test_the_machine_decides():
    assert choose(make_mesh({"fsdp": 8}), FSDP).backend == "xla"
    mesh = make_mesh(preset("fsdp_tp_context").mesh)
    how = How("splash", mesh, CONTEXT)
    assert fits_splash(256, 128, how)
    assert not fits_splash(128, 128, how)  # 64 tokens on each of two devices
    assert not fits_splash(256, 64, how)
