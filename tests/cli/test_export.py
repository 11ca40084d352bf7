"""From published weights into a run and out again: import, train, export, with adapters and without."""

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from mixdistill.cli import main
from mixdistill.data.mixture import Mixture
from mixdistill.errors import UserError
from mixdistill.losses import cross_entropy
from mixdistill.objective import Objective, Term
from mixdistill.optimizers import OptimizerConfig
from mixdistill.recipe import Recipe, Stage
from mixdistill.recipe.parameters import Merge
from mixdistill.students.adapters import Lora
from mixdistill.students.weights import load_hf, read_config
from mixdistill.traces.tokenizer import Tokenizer
from mixdistill.traces.worlds.chain import CHAIN
from mixdistill.traces.worlds.write import write_world
from mixdistill.training.loop import run
from mixdistill.training.workdir import open_trained

ROOT = Path(__file__).parents[2]
LLAMA = ROOT / "tests" / "parity" / "fixtures" / "llama"
IMITATE = Objective({"imitate": Term(cross_entropy)})
FAST = OptimizerConfig(learning_rate=1e-2)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    shards = tmp_path_factory.mktemp("data") / "shards"
    write_world(CHAIN, shards, {"F": 20})
    stage = Stage("only", 2, Mixture(shards=str(shards), rows=8, length=24), IMITATE)
    return Recipe(name="started", student=read_config(LLAMA), start=str(LLAMA), stages=(stage,))


@pytest.fixture(scope="module")
def started(recipe, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "plain"
    return workdir, run(recipe, workdir, quiet=True)


@pytest.fixture(scope="module")
def adapted(recipe, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "adapted"
    recipe = dataclasses.replace(recipe, adapters=Lora(rank=2, patterns=("blocks/attention/*",)))
    return workdir, run(recipe, workdir, quiet=True)


def test_a_run_begins_with_the_weights_and_its_export_is_bit_exact(recipe, started, tmp_path, capsys):
    workdir, outcome = started
    published = load_hf(LLAMA)[1]
    far = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), *jax.device_get((outcome.state.params, published)))
    assert 0 < max(jax.tree.leaves(far)) < 0.01  # two train steps of a small learning rate away
    assert main(["export", str(workdir), "--to", str(tmp_path / "out"), "--max-length", "128"]) == 0
    assert "model.safetensors" in capsys.readouterr().out
    _, params = load_hf(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, params, outcome.state.params)
    assert read_config(tmp_path / "out") == read_config(LLAMA)
    tokenizer = Tokenizer.load(tmp_path / "out")
    assert tokenizer.hash == Tokenizer.load(workdir / "tokenizer").hash
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert main(["export", str(workdir), "--to", str(tmp_path / "out")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["export", str(workdir), "--to", str(tmp_path / "peft"), "--adapters"]) == 2
    assert "has no adapters" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_adapters_are_merged_or_written_for_peft(adapted, tmp_path):
    workdir, outcome = adapted
    base = outcome.state.params["base"]
    published = load_hf(LLAMA, dtype="bfloat16")[1]
    jax.tree.map(np.testing.assert_array_equal, base, published)
    assert main(["export", str(workdir), "--to", str(tmp_path / "whole")]) == 0
    opened = open_trained(workdir)
    _, params = load_hf(tmp_path / "whole")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), params, opened.params)
    assert main(["export", str(workdir), "--to", str(tmp_path / "peft"), "--adapters"]) == 0
    settings = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (2, 32.0)
    assert settings["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    # What PEFT computes from it: W + alpha / r * B A, with W the base.
    load = __import__("safetensors.numpy").numpy.load_file
    peft, whole = load(tmp_path / "peft" / "adapter_model.safetensors"), load(tmp_path / "whole" / "model.safetensors")
    flat = load(LLAMA / "model.safetensors")
    for name, module in ((f"model.layers.1.self_attn.{p}_proj", p) for p in "qkvo"):
        a, b = (peft[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
        w = np.asarray(flat[f"{name}.weight"].astype("bfloat16"), np.float32)
        np.testing.assert_allclose(whole[f"{name}.weight"], w + 16.0 * b @ a, atol=1e-6, err_msg=module)


def test_each_teachers_adapters_leave_a_run_of_branches(recipe, tmp_path, capsys):
    """Three teachers, a branch each, one run: their adapters alone, combined by weights, merged and for PEFT."""
    write_world(CHAIN, tmp_path / "shards", {"F": 20, "B": 20, "H": 20})
    source = Mixture(shards=str(tmp_path / "shards"), rows=8, length=24, turns=2)  # a schedule's first rate is zero
    stages = (Stage("merge", 6, source, IMITATE, branches=Merge()),)
    lora = Lora(rank=2, patterns=("blocks/attention/query",), base_dtype="float32")
    outcome = run(dataclasses.replace(recipe, stages=stages, adapters=lora, optimizer=FAST), tmp_path / "w", quiet=True)
    kept = jax.device_get(outcome.state.memory["branches"]["kept"])
    base, each = jax.device_get(outcome.state.params["base"]), kept["each"]["blocks"]["attention"]["query"]
    # What the run goes on from is the mean of them, factor by factor.
    now = jax.device_get(outcome.state.params["adapters"])["blocks"]["attention"]["query"]
    np.testing.assert_allclose(now["b"], each["b"].mean(0), atol=1e-6)

    def by_hand(*weights):  # of B, F, H
        added = sum(
            w * np.einsum("ldr,lrhe->ldhe", a, b) for w, a, b in zip(weights, each["a"], each["b"], strict=True)
        )
        return base["blocks"]["attention"]["query"] + lora.scale * added

    def exported(*words):
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        assert main(["export", str(tmp_path / "w"), "--to", str(out), "--teachers", *words]) == 0
        return load_hf(out)[1]["blocks"]["attention"]["query"]

    np.testing.assert_allclose(exported("F"), by_hand(0, 1, 0), atol=1e-6)
    np.testing.assert_allclose(exported("H", "B"), by_hand(0.5, 0, 0.5), atol=1e-6)
    np.testing.assert_allclose(exported("H=2", "F=-1"), by_hand(0, -1, 2), atol=1e-6)
    assert np.abs(by_hand(0, 1, 0) - by_hand(1, 0, 0)).max() > 1e-5  # or nothing is tested
    words = ["export", str(tmp_path / "w"), "--to", str(tmp_path / "peft"), "--adapters", "--teachers", "B=0.5", "H=2"]
    assert main(words) == 0
    settings = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (4, 64.0)
    peft = __import__("safetensors.numpy").numpy.load_file(tmp_path / "peft" / "adapter_model.safetensors")
    a, b = (peft[f"base_model.model.model.layers.1.self_attn.q_proj.lora_{x}.weight"] for x in "AB")
    whole = by_hand(0.5, 0, 2)[1]
    np.testing.assert_allclose(
        base["blocks"]["attention"]["query"][1] + lora.scale * (b @ a).T.reshape(whole.shape), whole, atol=1e-6
    )
    capsys.readouterr()
    assert main([*words[:3], str(tmp_path / "no"), "--teachers", "G"]) == 2
    assert "unknown teacher 'G'" in capsys.readouterr().err
    assert main([*words[:3], str(tmp_path / "no"), "--teachers", "F=much"]) == 2
    assert "NAME=WEIGHT" in capsys.readouterr().err


def test_a_run_without_branches_has_no_teachers_adapters(adapted, started, tmp_path, capsys):
    for (workdir, _), says in ((adapted, "no adapters of each teacher"), (started, "has no adapters")):
        assert main(["export", str(workdir), "--to", str(tmp_path / "no"), "--teachers", "F"]) == 2
        assert says in capsys.readouterr().err


def test_a_start_that_is_not_the_students_is_refused(recipe, tmp_path):
    other = dataclasses.replace(recipe.student, mlp=64, norm_eps=1e-3)
    with pytest.raises(UserError, match=r"mlp is 64, there 48; norm_eps is 0\.001"):
        run(dataclasses.replace(recipe, student=other), tmp_path / "w")
    with pytest.raises(UserError, match=r"nowhere/config\.json does not exist"):
        run(dataclasses.replace(recipe, start="nowhere"), tmp_path / "w")
    assert list(tmp_path.iterdir()) == []


def test_import_says_what_to_write_and_copies(tmp_path, capsys):
    assert main(["import", str(LLAMA), "--to", str(tmp_path / "copy"), "--dtype", "float32"]) == 0
    said = capsys.readouterr().out
    assert "30,080 parameters in 30 tensors of 1 files" in said or "parameters in" in said
    assert f"start='{tmp_path / 'copy'}'" in said
    jax.tree.map(np.testing.assert_array_equal, load_hf(tmp_path / "copy")[1], load_hf(LLAMA)[1])
    assert main(["import", str(tmp_path)]) == 2
    assert "config.json does not exist" in capsys.readouterr().err


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("bench_weights", ROOT / "scripts" / "bench" / "weights.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    return bench.figures(tmp_path_factory.mktemp("weights"), 768, 10)


@pytest.mark.parametrize("how", ["copy", "load", "export"])
def test_memory_stays_under_the_largest_file(how, figures):
    """One parameter and the pieces that it is read in, beside what is meant to stay."""
    found = figures[how]
    assert found["files"] > 10
    assert found["largest"] > 85e6
    assert 0.5 * found["largest"] < found["peak"] < 1.3 * found["largest"]
