"""The parts of a plan, each against something that was counted otherwise."""

import dataclasses
import fcntl
import os
import tempfile
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from mixdistill.data.mixture import Mixture
from mixdistill.errors import UserError
from mixdistill.losses import cross_entropy
from mixdistill.mesh import preset
from mixdistill.objective import Objective, Term
from mixdistill.plan import worker
from mixdistill.plan.advice import advice, rank, settled, variants
from mixdistill.plan.aot import _needed, lower
from mixdistill.plan.collectives import Traffic, collectives
from mixdistill.plan.flops import flops_per_token
from mixdistill.plan.memory import by_class, share
from mixdistill.plan.roofline import Work, bound
from mixdistill.plan.text import lines, suggestions
from mixdistill.plan.topology import CHIPS, find, known
from mixdistill.recipe import Recipe, Stage
from mixdistill.recipe.parameters import Merge, PilotMix
from mixdistill.students import families
from mixdistill.students.decoder import make_student
from mixdistill.students.flops import learning, matrices
from mixdistill.students.student import batch_of, logits
from mixdistill.training.state import TrainState


def test_topologies_are_counted_as_they_are_rented():
    for name in ("v5e-16", "v5p-128", "v6e-256", "h200-8", "h200-64", "cpu-8"):
        assert name in known()
    assert (find("v5e-16").chips, find("v5e-16").hosts, find("v5e-16").shape) == (16, 4, "4x4")
    assert find("v5p-128").chips == 64  # cores are rented, two a chip
    assert find("h200-64").hosts == 8
    assert (find("2xv5e-16").chips, find("2xv5e-16").slices) == (32, 2)
    with pytest.raises(UserError, match=r"unknown topology 'v5e-17'; did you mean 'v5e-1.'\? known: .*v6e-256"):
        find("v5e-17")
    with pytest.raises(UserError, match="slices are counted for TPUs alone"):
        find("2xh200-8")


def test_shapes_multiply_to_chips():
    for name in known():
        topology = find(name)
        if topology.shape:
            product = 1
            for size in topology.shape.split("x"):
                product *= int(size)
            assert product == topology.chips


@pytest.mark.parametrize("tied", [True, False])
def test_flops_agree_with_the_studies_formula_and_with_xla(tied):
    config = dataclasses.replace(families.tiny(128), tied=tied, qk_norm=True)
    student, length = make_student(config), 64
    found = flops_per_token(student, length, "dense")
    assert found.useful == pytest.approx(learning(config, length) / length, rel=0.02)

    def forward(params, tokens):
        return logits(student, params, student.hidden(params, batch_of(tokens)))

    params = jax.eval_shape(student.init, jax.random.key(0))
    given = jax.ShapeDtypeStruct((4, length), jnp.int32)  # both layers are unrolled: all of it is counted
    counted = jax.jit(forward).lower(params, given).compile().cost_analysis()["flops"] / (4 * length)
    assert counted == pytest.approx(found.done / 3, rel=0.1)
    assert matrices(config) < counted


def test_what_is_computed_again_is_counted():
    config = families.tiny(128)
    done = {
        remat: flops_per_token(make_student(dataclasses.replace(config, remat=remat)), 64, "dense").done
        for remat in ("none", "dots", "full")
    }
    assert done["none"] < done["dots"] < done["full"]
    tiles = flops_per_token(make_student(config), 64, "tiles")
    assert tiles.done - done["none"] == 2 * 64 * 128
    assert tiles.useful == flops_per_token(make_student(config), 64, "dense").useful


TEXT = """
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %g = f32[8,16]{1,0} all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}
  %s = (bf16[4]{0}, bf16[16]{0}) all-gather-start(%y), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
}

%ends (q: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(6)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%inner (q: (s32[], f32[8])) -> (s32[], f32[8]) {
  %r = f32[8]{0:T(256)} reduce-scatter(%z), replica_groups=mesh['data'=2,'fsdp'=4] {'fsdp'}, dimensions={0}
}

ENTRY %main (p: f32[16]) -> f32[16] {
  %v = (s32[], f32[8]) while(%u), condition=%ends, body=%inner, backend_config={"flag_configs":[]}
  %w = (s32[], f32[8,16]) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"28"}}
  %r = f32[16]{0} all-reduce(%p), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}
"""


def test_collectives_in_a_loop_count_as_often_as_it_runs():
    found = collectives(TEXT, 8)
    assert found["all-gather"] == Traffic(56, 28 * (8 * 16 * 4 * 3 / 4 + 16 * 2 * 3 / 4), 2)
    assert found["all-reduce"] == Traffic(1, 2 * 7 / 8 * 64, 1)
    assert found["reduce-scatter"] == Traffic(6, 6 * 3 * 32, 1)  # as TPU programs say it: no noted count
    assert set(found) == {"all-gather", "all-reduce", "reduce-scatter"}


def test_collectives_of_a_compiled_scan():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.NamedSharding(mesh, jax.P(None, "x"))

    def run(w, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()

    weights = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32, sharding=split)
    given = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=jax.NamedSharding(mesh, jax.P()))
    found = collectives(jax.jit(run).lower(weights, given).compile().as_text(), 8)
    assert sum(t.count for t in found.values()) >= 5


def test_a_roofline_by_hand():
    topology = find("v5e-16")
    chip = CHIPS["v5e"]
    work = Work(16 * chip.peak, 32 * chip.peak, 0.5 * chip.bandwidth, 3.0 * chip.links, chip.network, tokens=600)
    found = bound(work, topology)
    assert (found.arithmetic, found.memory, found.links, found.network) == (2.0, 0.5, 3.0, 1.0)
    assert (found.seconds, found.limit) == (3.0, "links")
    assert found.mfu == pytest.approx(1 / 3)
    assert found.tokens_per_second == 200
    assert bound(work, find("cpu-8")) is None


def test_memory_adds_up_to_what_the_compiler_says():
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    array = jax.ShapeDtypeStruct((256,), jnp.float32, sharding=here)
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32, sharding=here), {"w": array}, [array, array], {})
    found = by_class(state, {"tokens": array}, gradients=1024, vocabulary=100, temporary=5000)
    assert found._asdict() == {
        "params": 1024, "optimizer": 2048, "other_state": 4, "batch": 1024,
        "gradients": 1024, "vocabulary_pass": 100, "activations": 3876,
    }  # fmt: skip
    assert by_class(state, {}, 1024, 100, temporary=800).total == 3076 + 800


@pytest.mark.parametrize(
    ("message", "gib"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory. Used 60.50G of 15.75G hbm. Exceeded hbm capacity by 44.75G.", 60.5),
        ("RESOURCE_EXHAUSTED: HLO temporaries (60.07G) exceeds available HBM (15.75G)", 60.07),
    ],
)
def test_the_compilers_overflow_is_read(message, gib):
    assert _needed(message) == int(gib * 2**30)


def plan(**changes):
    memory = {"params": 2, "optimizer": 4, "other_state": 0, "batch": 1, "gradients": 2, "vocabulary_pass": 1}
    gib = {name: size * 2**30 for name, size in {**memory, "activations": 20}.items()}
    base = {
        "stage": "only", "topology": "v5e-16", "chips": 16, "mesh": {"fsdp": 16}, "parameters": 10, "rows": 128,
        "length": 8, "num_microbatches": 1, "remat": "dots", "memory": gib, "needed": 30 * 2**30,
        "capacity": 16 * 2**30, "fits": False, "compiler": {"seconds": 1, "message": ""}, "collectives": {},
        "flops_per_token": {"useful": 1e9, "done": 2e9}, "tokens": 1024, "tokens_budget": 10**6,
        "vocabulary_pass": {"vocabulary": 100, "columns": 100, "backward": "tiles", "tiles": {}, "padded_to_128": 128},
        "roofline": None, "host": {"hosts": 4, "batch_bytes": 1, "memory_bytes": 1, "bytes_per_second": None},
    }  # fmt: skip
    return {**base, **changes}


def test_what_does_not_fit_says_by_how_much_and_what_would_help():
    text = "\n".join(lines(plan(), None))
    assert "DOES NOT FIT: 30.00 of 16.00 GiB, 14.00 too much" in text
    assert advice(plan()) == [
        "num_microbatches=4 would need about 14.2 GiB",
        "remat='full' keeps one activation a layer",
    ]
    heavy = {**plan()["memory"], "params": 20 * 2**30}
    assert "alone need 26.0 GiB a device: take 3 times the chips" in advice(plan(memory=heavy))[0]
    assert advice(plan(fits=True)) == []


def test_suggestions_are_ranked_by_speed_then_room():
    tried = list(variants(plan(), True))
    assert len(tried) == 3 * 3 * 6
    assert {"preset": "fsdp_tp", "num_microbatches": 2, "remat": "full"} in tried
    slow, fast = ({"fits": True, "roofline": {"seconds": s}, "needed": 1} for s in (2.0, 1.0))
    assert rank([slow, {"fits": False}, fast]) == [fast, slow]


MERGED = Stage("merge", 8, Mixture(shards="none yet", rows=8, length=32, turns=2), branches=Merge())
PILOTS = Stage("pilots", 8, Mixture(shards="none yet", rows=8, length=32, turns=2, anchor="F"), branches=PilotMix())


@pytest.mark.parametrize(("stage", "numbers"), [(MERGED, "float32"), (PILOTS, "as they are")])
def test_copies_that_branches_keep_are_counted_and_split(stage, numbers):
    """The start of the round, and what is merged or the best pilot: the parameters twice more."""
    student = dataclasses.replace(families.tiny(512), param_dtype="bfloat16")
    plain = Stage("plain", 8, Mixture(shards="none yet", rows=8, length=32), Objective({"nll": Term(cross_entropy)}))
    without, found = (
        lower(Recipe(name="b", student=student, stages=stages, **preset("fsdp")._asdict()), index, find("cpu-8"))
        for index, stages in ((0, (plain,)), (1, (plain, stage)))
    )
    params = share(found.state.params)
    assert params == share(without.state.params) < 2 * sum(x.size for x in jax.tree.leaves(found.state.params)) / 6
    assert share(without.state.memory) < 1000
    copies = share(found.state.memory) - share(without.state.memory)
    assert copies == pytest.approx(params * (3 if numbers == "float32" else 2), abs=200)
    assert found.digest != without.digest


def test_what_is_not_worth_compiling():
    def variant(remat, parts, preset="fsdp"):
        return {"preset": preset, "num_microbatches": parts, "remat": remat}

    fits = [{"fits": True, "changes": variant("dots", 2)}]
    assert settled(variant("full", 2), fits)  # slower, and needs less than what fits
    assert settled(variant("dots", 4), fits)
    assert not settled(variant("none", 2), fits)  # faster
    assert not settled(variant("dots", 1), fits)
    assert not settled(variant("full", 2, "fsdp_tp"), fits)
    tight = [{"fits": False, "changes": variant("dots", 2)}]
    assert settled(variant("none", 1), tight)
    assert not settled(variant("full", 2), tight)
    assert not settled(variant("dots", 4), tight)
    assert settled(variant("full", 8), [{"fits": False, "changes": variant("none", 1), "error": "no such mesh"}])


def test_suggestions_in_words():
    speed = {"seconds": 0.1}
    good = {"fits": True, "changes": {"preset": "fsdp"}, "needed": 3 * 2**30, "roofline": speed}
    bad = {"fits": False, "changes": {"preset": "fsdp_tp"}, "needed": 20 * 2**30, "capacity": 16 * 2**30}
    assert list(suggestions([good], [bad, {**bad, "error": "8 rows"}])) == [
        "what fits of 3 that were compiled, fastest first:",
        "  preset=fsdp: 3.00 GiB, at best 100.0 ms",
        "does not fit: preset=fsdp_tp: 4.00 GiB too much",
        "does not fit: preset=fsdp_tp: 8 rows",
    ]
    assert list(suggestions([], []))[1] == "  nothing"


def test_who_compiles_for_a_tpu_waits_in_a_queue(monkeypatch):
    monkeypatch.setattr(worker, "LOCK", f"mixdistill-plan-test-{os.getpid()}.lock")
    entered = threading.Event()

    def second():
        with worker.queue(find("v5e-4")):
            entered.set()

    with (Path(tempfile.gettempdir()) / worker.LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.3)
        with worker.queue(find("cpu-8")):  # others need not wait
            pass
    assert entered.wait(60)
    thread.join()
    (Path(tempfile.gettempdir()) / worker.LOCK).unlink()
