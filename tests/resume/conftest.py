"""One set of shards, and one cache of compiled programs for all processes: the runs differ in what happens to them."""

import os

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from mixdistill.traces.worlds.chain import CHAIN
from mixdistill.traces.worlds.write import write_world


@pytest.fixture(scope="session")
def chain_shards(tmp_path_factory):
    """Small shards of three teachers of the chain world."""
    out = tmp_path_factory.mktemp("chain") / "shards"
    return write_world(CHAIN, out, {"F": 40, "B": 40, "H": 40})


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Environment variables by which other processes use the cache."""
    folder = str(tmp_path_factory.mktemp("compiled"))
    names = {"jax_compilation_cache_dir": folder, "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in names.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield {**os.environ, **{name.upper(): str(value) for name, value in names.items()}}
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
