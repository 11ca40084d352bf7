"""The vocabulary pass compiles for TPUs that are not here: libtpu compiles ahead of time without a device."""

import functools
import importlib.util
import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.tpu

PROGRAM = """
import functools, json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from mixdistill.signals.vocabulary import vocabulary_pass

devices = topologies.get_topology_desc(topology_name=sys.argv[1], platform="tpu").devices
where = NamedSharding(Mesh(np.array(devices[:1]), ("x",)), P())
kinds = (((2048, 1024), jnp.bfloat16), ((1024, 50304), jnp.bfloat16), ((2048, 1), jnp.int32), ((2048,), jnp.bool_))
given = [jax.ShapeDtypeStruct(shape, dtype, sharding=where) for shape, dtype in kinds]

def loss(hidden, unembed, ids, valid, run):
    stats = run(hidden, unembed, ids, valid=valid, platform="tpu", num_valid_vocab=50257)
    return jnp.where(valid & (stats.rank < 50), stats.lse - stats.logit[:, 0], 0.0).sum(), stats

for implementation in ("xla", "pallas"):
    run = functools.partial(loss, run=functools.partial(vocabulary_pass, implementation=implementation))
    compiled = jax.jit(jax.grad(run, (0, 1), has_aux=True)).lower(*given).compile()
    found = {
        "kind": devices[0].device_kind,
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
        "kernel": "tpu_custom_call" in compiled.as_text(),
    }
    print(json.dumps({implementation: found}))
"""


@functools.cache
def compiled(topology: str) -> dict:
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install 'jax[tpu]'")
    # A process of its own: libtpu takes its settings from the environment, once, and may lock the machine.
    chips = {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
    env = {**os.environ, **chips, "TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, topology], env=env, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {name: found for line in lines for name, found in line.items()}


@pytest.mark.parametrize(("topology", "kind"), [("v5e:2x2", "TPU v5 lite"), ("v6e:2x2", "TPU v6 lite")])
def test_forward_and_backward_compile_for_a_tpu(topology, kind):
    programs = compiled(topology)
    assert {name: found["kind"] for name, found in programs.items()} == {"xla": kind, "pallas": kind}
    assert {name: found["kernel"] for name, found in programs.items()} == {"xla": False, "pallas": True}
    logits = 4 * 2048 * 50304
    assert all(found["temporaries"] < logits for found in programs.values())
