"""Checksums are the same wherever the arrays are, and change with every bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mixdistill.training import soundness as measured
from mixdistill.training.soundness import soundness

KEY = jax.random.key(0)
ARRAYS = {
    "matrix": jax.random.normal(KEY, (8, 6)),
    "half": jax.random.normal(KEY, (3, 2, 5)).astype(jnp.bfloat16),
    "count": jnp.arange(-4, 4, dtype=jnp.int32),
    "byte": jnp.arange(9, dtype=jnp.uint8),
    "flag": jnp.array([True, False, True]),
    "scalar": jnp.float32(-0.5),
    "empty": jnp.zeros((0, 3)),
}


@pytest.fixture(scope="module")
def by_hand():
    """One element at a time, from its bytes."""
    found = {}
    for name, array in ARRAYS.items():
        plain, total = np.ascontiguousarray(np.asarray(array)).reshape(-1), 0
        for place, element in enumerate(plain):
            mixed = (place * measured.MIX) % 2**32 ^ place >> 15
            total += (int.from_bytes(element.tobytes(), "little") + 1) * (mixed << 1 | 1)
        found[name] = total % 2**32
    return found


def test_on_the_host(by_hand):
    assert soundness(ARRAYS).checksums == by_hand
    assert soundness({name: np.asarray(array) for name, array in ARRAYS.items()}).checksums == by_hand


def test_on_devices(by_hand, monkeypatch):
    monkeypatch.setattr(measured, "_is_on_host", lambda _: False)
    assert soundness(ARRAYS).checksums == by_hand
    mesh = jax.make_mesh((2, 3), ("a", "b"), devices=jax.devices()[:6])
    split = jax.device_put(ARRAYS["matrix"], NamedSharding(mesh, PartitionSpec("a", "b")))
    assert soundness({"matrix": split}) == ({"matrix": by_hand["matrix"]}, True)


@pytest.mark.parametrize("on_host", [True, False])
def test_one_number_that_is_not_finite(on_host, monkeypatch):
    monkeypatch.setattr(measured, "_is_on_host", lambda _: on_host)
    assert soundness(ARRAYS).finite
    for name in ("matrix", "half", "scalar"):
        for bad in (np.nan, np.inf):
            array = ARRAYS[name].ravel().at[-1].set(bad).reshape(ARRAYS[name].shape)
            assert not soundness(ARRAYS | {name: array}).finite


@pytest.mark.parametrize("bit", [0, 17, 31])
def test_one_bit(bit):
    whole = np.asarray(ARRAYS["matrix"])
    for place in (0, 7, 47):
        changed = whole.reshape(-1).view(np.uint32).copy()
        changed[place] ^= np.uint32(1) << np.uint32(bit)
        changed = changed.view(np.float32).reshape(whole.shape)
        assert soundness({"a": changed}).checksums != soundness({"a": whole}).checksums
