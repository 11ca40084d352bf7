"""The decoder computes what transformers computes, from checkpoints that transformers wrote
(made by scripts/make_parity_fixtures.py; transformers 5.23, torch 2.13, float32)."""

import dataclasses
import functools
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from mixdistill.errors import UserError
from mixdistill.generation.sampler import complete
from mixdistill.mesh import TENSOR, is_axes, make_mesh, sharding
from mixdistill.students import families
from mixdistill.students.adapters import ADAPTERS, BASE, Lora, with_adapters
from mixdistill.students.config import Window
from mixdistill.students.decoder import make_student
from mixdistill.students.student import batch_of, logits
from mixdistill.students.weights import load_hf, read_config, save_hf
from mixdistill.students.write_adapter import save_peft

pytestmark = pytest.mark.parity
FIXTURES = Path(__file__).parent / "fixtures"
NAMES = sorted(path.name for path in FIXTURES.iterdir())
each_checkpoint = pytest.mark.parametrize("name", NAMES)
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_parity_fixtures.py"
TOLERANCE = 5e-5  # on values of size 1 to 5; measured: at most 1.6e-5


@functools.cache
def loaded(name):
    return load_hf(FIXTURES / name)


@functools.cache
def expected(name):
    return safetensors.numpy.load_file(FIXTURES / name / "expected.safetensors")


def packed(tokens, segment_lengths):
    """Segments one after the other in one row."""
    segment = np.repeat(np.arange(1, len(segment_lengths) + 1), segment_lengths)
    position = np.concatenate([np.arange(n) for n in segment_lengths])
    return {name: v[None].astype(np.int32) for name, v in
            {"tokens": tokens, "segment_id": segment, "position": position}.items()}  # fmt: skip


def test_the_fixtures_are_the_stated_families():
    assert NAMES == ["gemma3", "llama", "llama_stretched", "mistral", "qwen2", "qwen3", "qwen3_windowed"]
    configs = {name: read_config(FIXTURES / name) for name in NAMES}

    def where(has):
        return [name for name, config in configs.items() if has(config)]

    assert where(lambda c: c.qk_norm) == ["gemma3", "qwen3", "qwen3_windowed"]
    assert where(lambda c: c.qkv_bias) == ["qwen2"]
    assert where(lambda c: c.tied) == ["gemma3", "llama_stretched", "qwen3"]
    assert where(lambda c: c.rope_scaling) == ["gemma3", "llama_stretched"]
    assert where(lambda c: c.soft_cap) == ["gemma3"]
    windows = {name: config.window for name, config in configs.items() if config.window}
    assert windows == {"gemma3": Window(8, (1,), 1000.0), "mistral": Window(8), "qwen3_windowed": Window(6, (0,))}


@each_checkpoint
def test_hidden_states_and_logits(name):
    student, params = loaded(name)
    want = expected(name)
    hidden = jax.jit(student.hidden)(params, batch_of(jnp.asarray(want["tokens"], jnp.int32)))
    np.testing.assert_allclose(hidden, want["hidden"], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(logits(student, params, hidden), want["logits"], atol=TOLERANCE, rtol=0)


@each_checkpoint
def test_packed_prefixes_match_too(name):
    """Prefixes of the same rows, packed: their states are the first states of the whole rows."""
    student, params = loaded(name)
    want = expected(name)
    lengths = [11, 20, 9]
    tokens = np.concatenate([row[:n] for row, n in zip(want["tokens"], lengths, strict=True)])
    hidden = jax.jit(student.hidden)(params, packed(tokens, lengths))[0]
    states = np.concatenate([row[:n] for row, n in zip(want["hidden"], lengths, strict=True)])
    np.testing.assert_allclose(hidden, states, atol=TOLERANCE, rtol=0)


@each_checkpoint
def test_greedy_generations_are_equal(name):
    student, params = loaded(name)
    want = expected(name)
    prompts = [row[:n].tolist() for row, n in zip(want["tokens"], want["lengths"], strict=True)]
    results = complete(student, params, prompts, max_new=want["greedy"].shape[1], eos_id=-1)
    assert [result.tolist() for result in want["greedy"]] == [result.tokens.tolist() for result in results]


@each_checkpoint
def test_written_and_read_back(name, tmp_path):
    """What we write has transformers' names, shapes and bits, and the same configuration."""
    student, params = loaded(name)
    save_hf(student, params, tmp_path / "out", max_length=128)
    original = {}
    for path in sorted((FIXTURES / name).glob("model*.safetensors")):
        original |= safetensors.numpy.load_file(path)
    written = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert set(written) == set(original)
    for key, value in original.items():
        np.testing.assert_array_equal(written[key], value, err_msg=key)
    assert read_config(tmp_path / "out") == read_config(FIXTURES / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_bfloat16_round_trip(tmp_path):
    student, params = load_hf(FIXTURES / "qwen3", dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    save_hf(student, params, tmp_path / "out")
    _, again = load_hf(tmp_path / "out", dtype="bfloat16")
    jax.tree.map(np.testing.assert_array_equal, params, again)


@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
def test_every_device_is_given_its_own_slices(name):
    """No callback of a sharded load makes more than a device's share, and together they are the whole."""
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    student, params = load_hf(FIXTURES / name, mesh=mesh, rules=TENSOR)
    for leaf, axes in zip(jax.tree.leaves(params), jax.tree.leaves(student.axes, is_leaf=is_axes), strict=True):
        assert leaf.sharding == sharding(mesh, TENSOR, axes)
    jax.tree.map(np.testing.assert_array_equal, params, loaded(name)[1])
    with pytest.raises(UserError, match=r"parameter blocks/attention/query: axis 'heads' has size 4, which 8 devices"):
        load_hf(FIXTURES / name, mesh=make_mesh({"tensor": 8}), rules=TENSOR)


@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
def test_shards_are_small_and_indexed(name, tmp_path):
    student, params = loaded(name)
    save_hf(student, params, tmp_path / "out", shard_bytes=30_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert {path.name for path in shards} == set(index["weight_map"].values())
    assert len(shards) > 2
    assert all(path.stat().st_size < 34_000 for path in shards)
    assert index["metadata"]["total_size"] == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    jax.tree.map(np.testing.assert_array_equal, load_hf(tmp_path / "out")[1], params)


@pytest.mark.parametrize("name", ["qwen2", "gemma3", "mistral"])
def test_what_we_write_loads_in_transformers(name, tmp_path):
    """Runs where `scripts/make_parity_fixtures.py --environment` has made the environment with torch."""
    student, params = loaded(name)
    save_hf(student, params, tmp_path / "out", max_length=128, shard_bytes=30_000)
    found = transformers_says(tmp_path / "out")
    assert found["class"] == json.loads((FIXTURES / name / "config.json").read_text())["architectures"][0]
    assert found["problems"] == {}
    hidden = jax.jit(student.hidden)(params, batch_of(jnp.arange(10, dtype=jnp.int32)[None]))
    np.testing.assert_allclose(logits(student, params, hidden)[0], found["logits"], atol=1e-4, rtol=0)
    made = complete(student, params, [[0, 1, 2, 3, 4]], max_new=len(found["greedy"]), eos_id=-1)
    assert made[0].tokens.tolist() == found["greedy"]


def test_adapters_load_in_peft(tmp_path):
    student, params = loaded("llama")
    lora = Lora(rank=2, alpha=3.0, base_dtype="float32")
    adapting = with_adapters(student, lora)
    fresh = adapting.init(jax.random.key(0))[ADAPTERS]
    noise = jax.random.key(1)
    learned = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(noise, a.shape), fresh)
    whole = {BASE: params, ADAPTERS: learned}
    save_peft(student, lora, whole, tmp_path / "peft")
    found = transformers_says(FIXTURES / "llama", "--adapter", tmp_path / "peft")
    hidden = jax.jit(adapting.hidden)(whole, batch_of(jnp.arange(10, dtype=jnp.int32)[None]))
    np.testing.assert_allclose(logits(adapting, whole, hidden)[0], found["logits"], atol=1e-4, rtol=0)
    plain = jax.jit(student.hidden)(params, batch_of(jnp.arange(10, dtype=jnp.int32)[None]))
    assert np.abs(logits(student, params, plain)[0] - np.asarray(found["logits"])).max() > 0.1
    embedding = dataclasses.replace(lora, patterns=("embed",))
    with pytest.raises(UserError, match="linear layers has no embed"):
        save_peft(student, embedding, whole, tmp_path / "other")


def transformers_says(folder, *more):
    python = Path(tempfile.gettempdir()) / "mixdistill-parity-env" / "bin" / "python"
    if not python.is_file():
        pytest.skip("no environment with torch: python scripts/make_parity_fixtures.py --environment makes one")
    command = [python, SCRIPT, "--inside", "--check", folder, *more]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


# What is refused, and how the message names it.


def edited(name, tmp_path, **changes):
    folder = tmp_path / name
    shutil.copytree(FIXTURES / name, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "mamba"}, "unknown model_type.*'mamba'.*gemma3_text, llama, mistral, qwen2, qwen3"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types has 2 entries"),
        ({"layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
        ({"layer_types": ["sliding_attention"] * 3}, "there is no sliding_window"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config is"),
        ({"attn_logit_softcapping": 50.0}, r"attn_logit_softcapping is 50\.0"),
        ({"hidden_size": "32"}, "wrong type|whole number"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "yarn"),
        ({"num_hidden_layers": 4}, r"lacks model\.layers\.3\."),
        ({"num_hidden_layers": 2}, r"does not know: model\.layers\.2\."),
        ({"intermediate_size": 40}, r"mlp\.\w+_proj\.weight has shape .*asks for"),
        ({"num_attention_heads": 3}, "3 heads and 2 kv_heads"),
    ],
)
def test_checkpoints_that_are_refused(changes, says, tmp_path):
    with pytest.raises(UserError, match=says):
        load_hf(edited("llama", tmp_path, **changes))


def test_missing_broken_and_pickled_files(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_hf(tmp_path)
    folder = edited("llama", tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is pickled"):
        load_hf(folder)
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        load_hf(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        load_hf(folder)
    index = edited("qwen2", tmp_path) / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "../llama/model.safetensors"}}))
    with pytest.raises(UserError, match="not a file of that folder"):
        load_hf(index.parent)
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "model-00001-of-00005.safetensors"}}))
    with pytest.raises(UserError, match=r"model\.norm\.weight is in model-00001.*which does not hold it"):
        load_hf(index.parent)
    index.write_text(json.dumps({"weights": {}}))
    with pytest.raises(UserError, match="is no index"):
        load_hf(index.parent)
    cut = edited("qwen3", tmp_path) / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"qwen3/model\.safetensors cannot be read"):
        load_hf(cut.parent)


def test_an_interrupted_export_leaves_nothing(tmp_path):
    student, params = loaded("llama")

    def fails(folder):
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        save_hf(student, params, tmp_path / "out", beside=fails)
    assert list(tmp_path.iterdir()) == []


def test_students_that_cannot_be_written(tmp_path):
    config = dataclasses.replace(families.walk(32), soft_cap=30.0)
    student = make_student(config)
    with pytest.raises(
        UserError, match=r"mlp_kind='relu', no position encoding, conv_width=3, soft_cap=30\.0 without norms"
    ):
        save_hf(student, {}, tmp_path / "out")
    with pytest.raises(UserError, match="foreign"):
        save_hf(student._replace(config=None), {}, tmp_path / "out")
    with pytest.raises(UserError, match="exists already"):
        save_hf(student, {}, tmp_path)
    assert list(tmp_path.iterdir()) == []
