"""The plan of a batch, over corpora that exist only as columns of numbers."""

import collections
import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixdistill.data.corpus import Corpus
from mixdistill.data.mixture import Mixture
from mixdistill.data.planner import CHOICE, Plan, Planner, State

LENGTH, ROWS = 64, 4


def make_corpus(sizes: dict[str, list[int]], unit: str = "tokens") -> Corpus:
    """A corpus of traces of these footprints, all but three columns of which are trained on."""
    teachers = tuple(sorted(sizes))
    teacher = np.repeat(np.arange(len(teachers)), [len(sizes[name]) for name in teachers]).astype(np.int32)
    footprint = np.concatenate([sizes[name] for name in teachers]).astype(np.int32)
    trained = np.maximum(footprint - 3, 1)
    cost = trained.astype(np.float64) if unit == "tokens" else np.ones(len(teacher))
    pools = tuple(np.flatnonzero(teacher == k) for k in range(len(teachers)))
    counts = {name: {"eligible": len(sizes[name]), "dropped": 0, "truncated": 0} for name in teachers}
    return Corpus((), np.array([0, len(teacher)]), teachers, teacher, footprint, trained, cost, pools, counts)


def make_planner(corpus: Corpus, **changes) -> Planner:
    return Planner(corpus, Mixture(**{"shards": "-", "rows": ROWS, "length": LENGTH, **changes}))


def plans(planner: Planner, num: int, state: State | None = None) -> tuple[list[Plan], list[State]]:
    """`num` plans, and the states before each of them and after the last."""
    made, states = [], [planner.start() if state is None else state]
    for _ in range(num):
        plan, after = planner.plan(states[-1])
        made.append(plan)
        states.append(after)
    return made, states


def shares(corpus: Corpus, made: list[Plan]) -> np.ndarray:
    """What each teacher has of the mixture's unit."""
    ids = [place.trace_id for plan in made for place in plan.places]
    spent = np.bincount(corpus.teacher[ids], corpus.cost[ids], len(corpus.teachers))
    return spent / spent.sum()


def many(seed: int = 0, **ranges: tuple[int, int]) -> dict[str, list[int]]:
    """200 footprints a teacher, uniform in the given range."""
    rng = np.random.default_rng(seed)
    return {name: rng.integers(low, high, 200).tolist() for name, (low, high) in ranges.items()}


WIDE = {"long": (30, 60), "short": (4, 12), "mid": (10, 40)}
sizes = st.lists(st.integers(1, LENGTH), min_size=1, max_size=40)
corpora = st.dictionaries(st.sampled_from("abc"), sizes, min_size=1).map(make_corpus)
pack_bys = st.sampled_from(["mixed", "teacher"])


@given(corpora, pack_bys, st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_rows_hold_traces_side_by_side(corpus, pack_by, seed):
    made, _ = plans(make_planner(corpus, pack_by=pack_by, seed=seed), 4)
    for plan in made:
        assert list(plan.places) == sorted(plan.places, key=lambda p: (p.row, p.offset))
        for row in range(ROWS):
            places = plan.row(row)
            ends = np.cumsum([corpus.footprint[p.trace_id] for p in places])
            assert [p.offset for p in places] == [0, *ends[:-1]]
            assert ends[-1] <= LENGTH
            assert pack_by == "mixed" or len({corpus.teacher[p.trace_id] for p in places}) == 1
        assert sum(len(plan.row(row)) for row in range(ROWS)) == len(plan.places)


@given(corpora, pack_bys, st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_a_plan_follows_from_the_state_alone(corpus, pack_by, at):
    made, states = plans(make_planner(corpus, pack_by=pack_by), 8)
    travelled = State.from_json(json.loads(json.dumps(states[at].to_json())))
    assert travelled == states[at]
    again, reached = plans(make_planner(corpus, pack_by=pack_by), 8 - at, travelled)
    assert again == made[at:]
    assert reached == states[at:]


@given(corpora, pack_bys)
@settings(max_examples=25, deadline=None)
def test_every_trace_is_drawn_once_an_epoch(corpus, pack_by):
    made, states = plans(make_planner(corpus, pack_by=pack_by), 12)
    drawn = collections.Counter(p.trace_id for plan in made for p in plan.places) + collections.Counter(
        states[-1].waiting
    )
    for k, pool in enumerate(corpus.pools):
        cursor = states[-1].cursor[k]
        counts = [drawn[i] for i in pool]
        assert sum(counts) == cursor
        assert {cursor // len(pool)} <= set(counts) <= {cursor // len(pool), -(-cursor // len(pool))}


@given(corpora, pack_bys)
@settings(max_examples=15, deadline=None)
def test_the_waiting_list_is_bounded_and_nothing_starves(corpus, pack_by):
    made, states = plans(make_planner(corpus, pack_by=pack_by), 12)
    queues = len(corpus.teachers) if pack_by == "teacher" else 1
    # A queue is filled to `CHOICE` traces or a row's worth, whichever is more.
    assert max(len(state.waiting) for state in states) <= queues * max(CHOICE[pack_by], LENGTH)
    for before, after in zip(states, made, strict=False):
        if before.waiting and pack_by == "mixed":
            assert before.waiting[0] in {p.trace_id for p in after.places}


def test_another_seed_gives_another_order():
    corpus = make_corpus(many(**WIDE))
    one, other = (plans(make_planner(corpus, seed=seed), 1)[0] for seed in (1, 2))
    assert one != other


def test_each_epoch_has_its_own_order():
    corpus = make_corpus({"a": [LENGTH] * 12})
    made, _ = plans(make_planner(corpus), 12)
    order = [p.trace_id for plan in made for p in plan.places]
    epochs = [order[i : i + 12] for i in range(0, 36, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("pack_by", ["mixed", "teacher"])
@pytest.mark.parametrize("unit", ["tokens", "traces"])
def test_shares_are_exact_in_the_long_run(unit, pack_by):
    corpus = make_corpus(many(**WIDE), unit)
    weights = {"long": 1, "short": 2.5, "mid": 0.5}
    made, states = plans(make_planner(corpus, unit=unit, weights=weights, pack_by=pack_by), 400)
    wanted = np.array([weights[name] for name in corpus.teachers]) / 4
    # No drift: what is owed never exceeds one draw, or one row of one teacher.
    at_once = LENGTH if pack_by == "teacher" else corpus.cost.max()
    assert max(np.abs(state.credit).max() for state in states) <= at_once
    np.testing.assert_allclose(shares(corpus, made), wanted, atol=0.005)


def test_without_weights_each_teacher_has_the_share_of_what_there_is():
    corpus = make_corpus(many(**WIDE))
    made, _ = plans(make_planner(corpus), 400)
    stock = np.bincount(corpus.teacher, corpus.cost)
    np.testing.assert_allclose(shares(corpus, made), stock / stock.sum(), atol=0.005)


@pytest.mark.parametrize("pack_by", ["mixed", "teacher"])
def test_a_weight_of_zero_draws_nothing_and_may_rise(pack_by):
    corpus = make_corpus(many(**WIDE))
    planner = make_planner(corpus, weights={"long": 1, "short": 0, "mid": 0}, pack_by=pack_by)
    start = dataclasses.replace(planner.start(), pending=((50, (0.0, 0.25, 0.75)), (100, (1.0, 0.0, 0.0))))
    made, states = plans(planner, 150, start)
    assert corpus.teachers == ("long", "mid", "short")
    np.testing.assert_array_equal(shares(corpus, made[:50]), [1, 0, 0])
    np.testing.assert_allclose(shares(corpus, made[50:100]), [0, 0.25, 0.75], atol=0.03)
    np.testing.assert_array_equal(shares(corpus, made[100:]), [1, 0, 0])
    assert [len(state.pending) for state in states[49:52]] == [2, 2, 1]


def test_what_waits_for_a_teacher_without_weight_is_kept_for_later():
    corpus = make_corpus(many(**WIDE))
    planner = make_planner(corpus)
    start = dataclasses.replace(planner.start(), pending=((2, (1.0, 0.0, 0.0)), (5, (0.2, 0.4, 0.4))))
    made, states = plans(planner, 9, start)
    parked = {i for i in states[2].waiting if corpus.teacher[i]}
    assert parked
    assert all(parked <= set(state.waiting) for state in states[2:6])
    later = {p.trace_id for plan in made[5:] for p in plan.places}
    assert parked <= later


def test_the_state_is_small():
    teachers = {f"teacher-{k}": (10, 50) for k in range(20)}
    planner = make_planner(make_corpus(many(**teachers)), pack_by="teacher")
    _, states = plans(planner, 50)
    assert max(len(json.dumps(state.to_json())) for state in states) < 6000


@pytest.mark.parametrize(("pack_by", "least"), [("mixed", 0.995), ("teacher", 0.97)])
def test_rows_are_full(pack_by, least):
    corpus = make_corpus(many(a=(4, 30), b=(4, 20), c=(10, 20)))
    made, _ = plans(make_planner(corpus, pack_by=pack_by), 100)
    used = sum(int(corpus.footprint[p.trace_id]) for plan in made for p in plan.places)
    assert used / (100 * ROWS * LENGTH) > least
