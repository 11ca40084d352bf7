"""The study of refinement in small: FLOPs by hand, every arm as text, one arm through all its stages, the table."""

import numpy as np
import pytest

from experiments import flops, refine
from mixdistill.recipe import fingerprint, set_path, show
from mixdistill.students.config import DecoderConfig
from mixdistill.traces.worlds.chain import CHAIN

SIZE = refine.Size(
    traces=30, problems=30, imitation=400, srl=25, reinforcement=300, rows=4, prompts=2, samples=4, test=8, longer=8
)
NOTHING = lambda share: None  # noqa: E731


def test_flops_by_hand():
    config = DecoderConfig(vocab_size=10, embed=4, layers=2, heads=3, kv_heads=1, head_dim=2, mlp=5, mlp_kind="gelu")
    # Query 4 x 6, key and value 4 x 2, out 6 x 4, MLP 2 x 4 x 5; two layers; unembedding 4 x 10.
    matrices = 2 * (24 + 8 + 8 + 24 + 40) + 40
    assert flops.forward(config, 3) == 2 * matrices * 3 + 4 * 2 * 6 * (1 + 2 + 3)
    assert flops.learning(config, 3) == 3 * flops.forward(config, 3)
    assert flops.drawing(config, 2, 2) == flops.forward(config, 3)
    assert flops.of_rollout(config, 2, 2) == 4 * flops.forward(config, 3)


@pytest.mark.parametrize("arm", refine.ARMS)
def test_every_arm_is_a_recipe_with_a_text(arm, tmp_path):
    plan = refine.recipe(arm, tmp_path, 0, SIZE)
    again = refine.recipe(arm, tmp_path, 0, SIZE)
    assert fingerprint(plan) == fingerprint(again)
    assert f"name = '{arm}'" in show(plan)
    if "reinforce" in arm:
        changed = set_path(plan, f"stages.{len(plan.stages) - 1}.source.policy.temperature", "0.5")
        assert changed.stages[-1].source.policy.temperature == 0.5
        assert fingerprint(changed) != fingerprint(plan)


def test_imitate_and_reinforce_in_one_workdir(tmp_path):
    refine.write(tmp_path, 0, SIZE, NOTHING)
    result = refine.train(tmp_path, "imitate-reinforce", 0, SIZE, None, NOTHING)
    assert result.correct.shape == (8,)
    assert 700 <= result.tokens < 1000
    assert result.flops > 0
    assert set(result.rollouts) == {"answer", "spread", "length", "nll"}
    assert_same(refine.train(tmp_path, "imitate-reinforce", 0, SIZE, None, never), result)  # kept, not trained again
    baseline = refine.recipe("imitate", tmp_path / "shards-0", 0, SIZE)
    cost = refine.cheapest_target(baseline, tmp_path / "shards-0")
    config = baseline.student
    assert flops.learning(config, 1) < cost < 3 * flops.learning(config, 1) * 2
    found = refine.summary([result._replace(arm=arm, seed=s) for arm in refine.ARMS for s in (0, 1)], SIZE)
    assert found["differences"]["imitate-reinforce - pooled"]["mean"] == 0
    assert refine.table(found).count("\n") == 2 + len(refine.ARMS) + 2 + 6
    assert CHAIN.tokenizer().vocab_size == config.vocab_size
    assert np.isfinite(found["arms"]["pooled"]["flops"])


def never(share):
    raise AssertionError("it is there already")


def assert_same(one, other):
    for name in ("correct", "numbers", "rollouts"):  # NaN equals NaN
        np.testing.assert_equal(getattr(one, name), getattr(other, name))
    assert one[:2] + one[4:6] == other[:2] + other[4:6]
