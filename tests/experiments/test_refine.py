"""The study of refinement in small: FLOPs by hand, arms as text, an arm and one that needs it, the verdict."""

import pytest

from experiments import flops
from experiments import imitate_then_refine as refine
from mixdistill.recipe import fingerprint, set_path, show
from mixdistill.students.config import DecoderConfig
from mixdistill.studies.results import Results
from mixdistill.studies.study import Cell, Row
from mixdistill.traces.worlds.chain import CHAIN

STUDY = refine.study()
SIZE = STUDY.tiny
NOTHING = lambda share: None  # noqa: E731
NAMES = refine.ARMS[refine.MORE]


def test_flops_by_hand():
    config = DecoderConfig(vocab_size=10, embed=4, layers=2, heads=3, kv_heads=1, head_dim=2, mlp=5, mlp_kind="gelu")
    # Query 4 x 6, key and value 4 x 2, out 6 x 4, MLP 2 x 4 x 5; two layers; unembedding 4 x 10.
    matrices = 2 * (24 + 8 + 8 + 24 + 40) + 40
    assert flops.forward(config, 3) == 2 * matrices * 3 + 4 * 2 * 6 * (1 + 2 + 3)
    assert flops.learning(config, 3) == 3 * flops.forward(config, 3)
    assert flops.drawing(config, 2, 2) == flops.forward(config, 3)
    assert flops.of_rollout(config, 2, 2) == 4 * flops.forward(config, 3)


@pytest.mark.parametrize("name", NAMES)
def test_every_arm_is_a_recipe_with_a_text(name, tmp_path):
    plan = refine.recipe(name, tmp_path, 0, SIZE, SIZE.more)
    again = refine.recipe(name, tmp_path, 0, SIZE, SIZE.more)
    assert fingerprint(plan) == fingerprint(again)
    assert f"name = '{name}'" in show(plan)
    if "reinforce" in name:
        changed = set_path(plan, f"stages.{len(plan.stages) - 1}.source.policy.temperature", "0.5")
        assert changed.stages[-1].source.policy.temperature == 0.5
        assert fingerprint(changed) != fingerprint(plan)


def test_imitate_and_reinforce_in_one_workdir_sets_the_flops_of_imitation(tmp_path):
    first, needing = (refine.arm_of(name, refine.FEW) for name in (refine.FIRST, "imitate"))
    assert STUDY.needs[needing] == (first,)
    refine.prepare(0, SIZE, tmp_path, NOTHING)

    def cell(arm, needs):
        return Cell(arm, 0, SIZE, tmp_path, tmp_path / arm, needs, NOTHING)

    row = refine.run(cell(first, {}))
    assert len(row.outcomes["test"]) == SIZE.test
    assert 700 <= row.spent["tokens seen"] < 1000
    assert {f"rollout {name} last" for name in ("answer", "spread", "length", "nll")} <= set(row.numbers)
    baseline = refine.recipe("imitate", tmp_path / refine.FEW, 0, SIZE, SIZE.few)
    cost, config = refine.cheapest_target(baseline, tmp_path / refine.FEW), baseline.student
    assert CHAIN.tokenizer().vocab_size == config.vocab_size
    assert flops.learning(config, 1) < cost < 3 * flops.learning(config, 1) * 2
    batch = SIZE.rows * 64 * cost
    alone = refine.run(cell(needing, {first: row}))
    assert row.spent["flops"] <= alone.spent["flops"] * 1.05
    assert alone.spent["flops"] < row.spent["flops"] + 2 * batch


def results(**accuracy):
    """Rows of three seeds in which so many of ten problems are right; imitation has five."""
    rows = []
    for arm in STUDY.arms:
        amount, _, name = arm.partition(": ")
        key = ("few_" if amount == refine.FEW else "") + name.replace("-", "_")
        right = accuracy.get(key, accuracy.get(name.replace("-", "_"), 5))
        numbers = dict.fromkeys(("rollout answer first", "rollout answer last"), 0.5)
        rows += [Row(arm, seed, {"test": [n < right for n in range(10)]}, numbers) for seed in (0, 1, 2)]
    return Results(rows)


def test_the_verdict_follows_the_differences():
    assert refine.verdict(results(imitate_reinforce=10, imitate=2, pooled=1, reinforce=0)).outcome == "holds"
    found = refine.verdict(results(imitate_reinforce=10, imitate=10, pooled=1, reinforce=0))
    assert found.outcome == "holds in part"
    assert "does not beat imitation alone (+0.000" in found.words
    assert refine.verdict(results()).outcome == "overturned"
