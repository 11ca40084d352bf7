"""The decoder computes what transformers computes, from checkpoints that transformers wrote
(made by scripts/make_parity_fixtures.py; transformers 5.23, torch 2.13, float32)."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from mixdistill.errors import UserError
from mixdistill.generation.sampler import complete
from mixdistill.students import families
from mixdistill.students.decoder import make_student
from mixdistill.students.student import batch_of, logits
from mixdistill.students.weights import load_hf, read_config, save_hf

pytestmark = pytest.mark.parity
FIXTURES = Path(__file__).parent / "fixtures"
NAMES = sorted(path.name for path in FIXTURES.iterdir())
each_checkpoint = pytest.mark.parametrize("name", NAMES)
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
    assert NAMES == ["llama", "llama_stretched", "qwen2", "qwen3"]
    configs = [read_config(FIXTURES / name) for name in NAMES]
    assert [c.qk_norm for c in configs] == [False, False, False, True]
    assert [c.qkv_bias for c in configs] == [False, False, True, False]
    assert [c.tied for c in configs] == [False, True, False, True]
    assert [c.rope_scaling is not None for c in configs] == [False, True, False, False]


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


def test_place_gets_every_parameter_with_its_axes():
    seen = {}
    load_hf(FIXTURES / "llama", place=lambda array, axes: seen.setdefault(axes, array))
    assert seen[("layers", "embed", "heads", "head_dim")].shape == (3, 32, 4, 8)
    assert seen[("vocab", "embed")].shape == (96, 32)


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
        ({"model_type": "mamba"}, "unknown model_type.*'mamba'.*llama, qwen2, qwen3"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "sliding_attention"),
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


def test_students_that_cannot_be_written(tmp_path):
    config = dataclasses.replace(families.walk(32), soft_cap=30.0)
    student = make_student(config)
    with pytest.raises(UserError, match=r"mlp_kind='relu', no position encoding, conv_width=3, soft_cap=30\.0"):
        save_hf(student, {}, tmp_path / "out")
    with pytest.raises(UserError, match="foreign"):
        save_hf(student._replace(config=None), {}, tmp_path / "out")
    with pytest.raises(UserError, match="exists already"):
        save_hf(student, {}, tmp_path)
    assert list(tmp_path.iterdir()) == []
