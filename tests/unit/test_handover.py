"""Hand-over rules by hand, and a decision that does not depend on when tallies arrive."""

import json

import numpy as np
import pytest

from mixdistill.data.mixture import Mixture
from mixdistill.errors import UserError
from mixdistill.generation.judges import exact_answer
from mixdistill.generation.rollouts import HeldOut
from mixdistill.losses.cross_entropy import cross_entropy
from mixdistill.objective import Objective, Tally, Term
from mixdistill.recipe import Stage
from mixdistill.recipe.handover import Below, Falls, Plateau
from mixdistill.training.handover import Handover


def first_end(rule, values):
    """How many looks it takes."""
    seen = []
    for count, value in enumerate(values, start=1):
        seen, over = rule.after(seen, value)
        seen = json.loads(json.dumps(seen))  # as a checkpoint keeps it
        if over:
            return count
    return None


@pytest.mark.parametrize(
    ("rule", "values", "end"),
    [
        (Plateau("a", patience=2), [0.1, 0.2, 0.2, 0.3, 0.3, 0.1, 0.9], 6),
        (Plateau("a", patience=2, margin=0.15), [0.1, 0.2, 0.3, 0.3, 0.4], 5),
        (Plateau("a", patience=1), [0.5, 0.5], 2),
        (Below("a", 0.3, window=2), [0.5, 0.2, 0.3, 0.2], 3),
        (Below("a", 0.3, window=3), [0.1, 0.1], None),
        (Falls("a", 0.5, window=2), [4.0, 2.0, 1.0, 3.0, 1.0], None),
        (Falls("a", 0.5, window=2), [4.0, 2.0, 1.0, 1.0], 4),
        (Falls("a", 0.5, window=1), [4.0, 2.0, 1.9], 3),
    ],
    ids=str,
)
def test_rules_by_hand(rule, values, end):
    assert first_end(rule, values) == end


def tally(value, weight=1.0):
    return {"a": Tally(np.array(value * weight), np.array(weight))}


def last_train_step(early: set[int], values):
    """Of a stage whose tallies arrive one train step late, but at once after those in `early`."""
    state, done, waiting = None, 0, []
    while True:
        handover = Handover((Plateau("a", patience=1),), state)  # as after resuming
        if handover.due(done) or done == len(values):
            return done
        done += 1
        waiting.append(done)
        arrived = waiting if done in early else waiting[:-1]
        for number in arrived:
            handover.observe(number, values[number - 1])
        waiting = waiting[len(arrived) :]
        state = json.loads(json.dumps(handover.to_json()))


def test_a_stage_ends_at_the_same_train_step_however_often_is_checkpointed():
    values = [tally(0.1), {}, tally(0.2), tally(0.2), tally(0.9), tally(0.1)]
    assert {last_train_step(early, values) for early in (set(), {3}, {4}, {5}, {4, 5}, set(range(9)))} == {5}


def test_what_is_no_number_is_no_look():
    handover = Handover((Plateau("a", patience=1),), None)
    handover.observe(1, tally(0.5))
    for odd in ({}, tally(0.1, 0.0), tally(np.nan), {"a": Tally(np.zeros(2), np.ones(2))}):
        handover.observe(2, odd)
    assert not handover.due(10)
    handover.observe(3, tally(0.5))
    assert not handover.due(3)
    assert handover.due(4)
    assert "Plateau" in handover.reason


def test_a_rule_that_nothing_feeds_is_refused():
    source = Mixture(shards="x", rows=1, length=8)
    objective = Objective({"nll": Term(cross_entropy)})
    with pytest.raises(UserError, match="held_out=HeldOut"):
        Stage("s", 1, source, objective, until=(Plateau("held_out/answer"),))
    with pytest.raises(UserError, match="no Rollouts"):
        Stage("s", 1, source, objective, until=(Below("rollout/spread", 0.1),))
    exam = HeldOut(shards="x", judges={"answer": exact_answer}, every=5)
    with pytest.raises(UserError, match="held_out/answer, held_out/ended"):
        Stage("s", 1, source, objective, until=(Plateau("held_out/anser"),), held_out=exam)
    Stage("s", 1, source, objective, until=(Plateau("held_out/answer"),), held_out=exam)
    with pytest.raises(UserError, match="patience"):
        Plateau("a", patience=0)
