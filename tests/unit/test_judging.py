"""A verifier's process that dies or hangs costs its own completion: not told, counted, left out of the update."""

import time

import numpy as np
import pytest

from mixdistill.errors import UserError
from mixdistill.generation.drawn import Drawn, to_batch
from mixdistill.generation.judges import ended, exact_answer
from mixdistill.generation.measures import measures
from mixdistill.generation.rewards import weighted_sum
from mixdistill.generation.rollouts import Rollout
from mixdistill.generation.sampler import Generated
from mixdistill.losses.policy_gradient import group_advantages
from mixdistill.traces import grade
from mixdistill.traces.grade_pool import Pool
from mixdistill.traces.trace import Step, Trace
from mixdistill.training.judging import judged

WORKER = """
import json, os, sys, time
print("true", flush=True)
for line in sys.stdin:
    one, other = json.loads(line)
    if "666" in one: os._exit(9)
    if "777" in one: time.sleep(60)
    print(json.dumps(sorted(one) == sorted(other)), flush=True)
"""
TRACE = Trace("p", "?", (Step("x"),), "x+1", "F", reference="x+1")


def said(answer, tokens=3):
    return Rollout(TRACE, 0, f"So \\boxed{{{answer}}}" if tokens else "", True, tokens)


@pytest.fixture
def fragile(monkeypatch):
    pool = Pool(seconds=0.2, command=("-c", WORKER))
    monkeypatch.setattr(grade, "_pool", lambda: pool)
    monkeypatch.setattr(grade, "has_algebra", lambda: True)
    yield
    pool.close()


def test_a_check_that_dies_or_hangs_costs_itself_alone(fragile):
    rollouts = [said("1+x"), said("x+666"), said("x+2"), said("x+777"), said("1+x"), said("1+x", tokens=0)]
    began = time.monotonic()
    found = judged({"answer": exact_answer, "ended": ended}, rollouts)
    assert time.monotonic() - began < 60
    np.testing.assert_array_equal(found["answer"], [1, np.nan, 0, np.nan, 1, np.nan])
    np.testing.assert_array_equal(found["ended"], [1, 1, 1, 1, 1, np.nan])
    rewards = weighted_sum(found, {"answer": 1.0, "ended": 0.5})
    tokens = [
        Generated(np.full(r.num_tokens, 4, np.int32), np.zeros(r.num_tokens), True, np.zeros(0)) for r in rollouts
    ]
    place = np.zeros(6, np.int32)
    drawn = Drawn(place, place, [[1]] * 6, tokens, rewards, place, np.zeros(6, np.float32))
    told = measures(drawn, 6)
    assert told["rollout/unverified"] == (2, 5)
    assert told["rollout/failed"] == (1, 6)
    assert told["rollout/reward"] == (3.5, 3)
    advantage = group_advantages(rewards.total[None], normalise="none")[0]
    batch = to_batch(drawn, advantage, np.ones(9, bool), 8)
    assert batch["valid"].any(1).tolist() == [True, False, True, False, True, False]
    np.testing.assert_allclose(advantage, [1 / 3, 0, -2 / 3, 0, 1 / 3, 0], atol=1e-6)


def test_a_judge_that_gives_too_little():
    with pytest.raises(UserError, match="judge 'odd' gave shape"):
        judged({"odd": lambda rollouts: [1.0]}, [said("1"), said("2")])
