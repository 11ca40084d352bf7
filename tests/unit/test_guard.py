"""The guard's rules on tallies made by hand: who is charged, what follows, and that JSON in between changes nothing."""

import json

import numpy as np
import pytest

from mixdistill.errors import UserError
from mixdistill.objective import Tally
from mixdistill.recipe.guard import Alarm, Guard
from mixdistill.training.guard import Watch
from mixdistill.training.position import Position
from mixdistill.training.spikes import Usual

TEACHERS = ("A", "B", "C")
RULES = Guard(warm_up=8, window=16, quarantine_after=3, rollback_after=5, max_skipped=20, alarms=())
EQUAL = dict.fromkeys(TEACHERS, 1 / 3)


def tallies(losses=(1.0, 1.0, 1.0), norm=1.0, skipped=False, no_data=False, bad=(0, 0, 0), **more) -> dict[str, Tally]:
    one = np.ones((), np.float32)
    return {
        "teacher/nll": Tally(np.float32(losses) * 4, np.full(3, 4, np.float32)),
        "teacher/nonfinite": Tally(np.float32(bad), np.full(3, 4, np.float32)),
        "optimizer/grad_norm": Tally(np.float32(norm), one),
        "optimizer/skipped": Tally(np.float32(skipped), one),
        "no_data": Tally(np.float32(no_data), one),
        "tokens": Tally(np.float32(12), np.float32(16)),
    } | {name: Tally(np.float32(value), one) for name, value in more.items()}


class Run:
    """A watch that is fed train step after train step, and rebuilt from JSON before each."""

    def __init__(self, rules: Guard):
        self.rules, self.state, self.step = rules, None, 0

    def __call__(self, weights=EQUAL, planned=12, stage=0, **made) -> list[dict]:
        watch = Watch(self.rules, TEACHERS, self.state)
        self.step += 1
        found = watch.observe(Position(stage=stage, train_step=self.step), tallies(**made), weights, planned)
        self.state = json.loads(json.dumps(watch.to_json()))
        return found

    @property
    def watch(self) -> Watch:
        return Watch(self.rules, TEACHERS, self.state)

    def quiet(self, count: int, **made) -> None:
        rng = np.random.default_rng(self.step)
        for _ in range(count):
            assert self(losses=1 + 0.01 * rng.normal(size=3), norm=1 + 0.01 * rng.normal(), **made) == []


def warm(rules: Guard = RULES) -> Run:
    run = Run(rules)
    run.quiet(10)
    return run


def events(found: list[dict]) -> list[str]:
    return [one["event"] for one in found]


def test_robust_z_by_hand():
    usual = Usual(window=5, warm_up=5, floor=(0.0, 1e-9), values=[1.0, 2.0, 3.0, 4.0, 100.0])
    assert usual.z(3 + 1.4826 * 2) == pytest.approx(2.0)  # median 3, median absolute deviation 1
    usual.add(5.0)
    assert usual.values == [2.0, 3.0, 4.0, 100.0, 5.0]
    assert Usual(window=5, warm_up=5, floor=(0.0, 1e-9), values=[1.0] * 4).z(1e9) == 0.0


def test_nothing_is_a_spike_before_the_warm_up():
    run = Run(RULES)
    assert [event for _ in range(8) for event in run(losses=(1, 50, 1))] == []


def test_a_teacher_that_keeps_spiking_is_quarantined_and_the_others_stay():
    run = warm()
    first, second, third = (run(losses=(1, 9, 1)) for _ in range(3))
    assert events(first) == events(second) == ["spike"]
    assert first[0]["teachers"] == ["B"]
    assert events(third) == ["spike", "quarantine"]
    assert (third[1]["teacher"], third[1]["train_step"]) == ("B", 13)
    assert run.watch.closed == {"B": {"since": 13, "weight": pytest.approx(1 / 3)}}
    # What is on its way while the mixture changes counts against nobody else, and asks for no rollback.
    assert [events(run(losses=(1, 9, 1))) for _ in range(6)] == [["spike"]] * 6


def test_strikes_far_apart_are_forgotten():
    run = warm()
    for _ in range(4):
        assert events(run(losses=(1, 9, 1))) == ["spike"]
        run.quiet(RULES.memory)
    assert run.watch.closed == {}


def test_tokens_that_are_not_finite_are_charged_to_their_teacher():
    run = warm()
    assert run(skipped=True, norm=np.nan, bad=(0, 0, 3))[0]["teachers"] == ["C"]
    assert run(skipped=True, norm=np.inf)[0]["teachers"] == []  # nobody stands out
    assert run.watch.skipped == 2


def test_gates_that_close_everything_are_no_accident():
    assert warm()(skipped=True, no_data=True, norm=0.0) == []


def test_a_jump_of_the_gradient_is_charged_to_who_stands_out():
    run = warm()
    (found,) = run(losses=(1, 1.3, 1), norm=30.0)
    assert (found["event"], found["teachers"]) == ("spike", ["B"])
    (found,) = run(norm=30.0)
    assert (found["event"], found["teachers"]) == ("spike", [])


def test_the_last_teacher_is_never_closed():
    run = warm()
    only = {"A": 0.0, "B": 1.0, "C": 0.0}
    assert all("quarantine" not in events(run(losses=(1, 9, 1), weights=only)) for _ in range(6))


def test_rollback_after_strikes_of_nobody_goes_to_the_last_calm_checkpoint():
    run = warm()
    watch = run.watch
    watch.checkpoint(10, finite=True)
    run.state = watch.to_json()
    found = [run(norm=30.0) for _ in range(5)]
    assert events(found[-1]) == ["spike", "rollback asked"]
    assert (found[-1][1]["train_step"], found[-1][1]["at"]) == (15, 16)
    watch = run.watch
    watch.checkpoint(15, finite=True)  # not calm: stays at 10
    assert watch.good == 10
    assert not watch.rolls_back(15)
    assert watch.rolls_back(16)
    assert watch.rolled_back(16) == {"event": "rollback", "train_step": 16, "to": 10}
    assert (watch.skipped, watch.rolls_back(17)) == (6, False)
    assert watch.pinned == (10,)


def test_there_is_no_rollback_to_the_start():
    run = warm()
    found = [run(norm=30.0) for _ in range(12)]
    assert all(events(decisions) == ["spike"] for decisions in found)
    assert not run.watch.rolls_back(1000)


def test_a_state_that_is_not_finite_is_never_the_good_one():
    watch = warm().watch
    watch.checkpoint(8, finite=True)
    watch.checkpoint(10, finite=False)
    assert watch.good == 8


def test_the_budget_of_lost_train_steps_ends_the_run_until_it_is_forgiven():
    run = warm(Guard(warm_up=8, window=16, rollback_after=0, max_skipped=3, alarms=()))
    found = [run(skipped=True, norm=np.nan) for _ in range(5)]
    assert events(found[3]) == ["nonfinite", "stop"]
    assert events(found[4]) == ["nonfinite"]  # it is said once
    watch = run.watch
    assert watch.stopped == "4 train steps were lost, more than guard.max_skipped=3"
    watch.forgive((), 15)
    assert (watch.stopped, watch.skipped) == ("", 0)


def test_a_quarantine_ends_after_its_probation_or_by_a_person():
    run = warm(Guard(warm_up=8, window=16, probation=20, rollback_after=0, alarms=()))
    for _ in range(3):
        run(losses=(1, 9, 1))
    watch = run.watch
    assert watch.forgive(("C",), 13) == []
    assert watch.forgive(("B",), 13)[0] | {"weight": 0} == {
        "event": "readmit",
        "train_step": 13,
        "teacher": "B",
        "weight": 0,
        "reason": "asked for",
    }
    run.quiet(19)
    assert [(one["event"], one["teacher"]) for one in run()] == [("readmit", "B")]
    assert run.watch.closed == {}


def test_a_new_stage_learns_anew_what_is_usual():
    run = warm()
    assert run(losses=(9, 9, 9), stage=1) == []


def test_targets_that_did_not_come_are_counted_and_end_the_run_when_they_are_many():
    run = Run(Guard(warm_up=2, window=4, max_damaged=0.2, alarms=()))
    assert run(planned=13) == [{"event": "damaged", "train_step": 1, "targets": 1}]
    run.quiet(2)
    assert events(run(planned=40)) == ["stop"]


@pytest.mark.parametrize(
    ("alarm", "values", "at"),
    [
        (Alarm("kept", "below", 0.1, window=2), [0.5, 0.05, 0.05, 0.05, 0.5, 0.5, 0.01, 0.01], [3, 8]),
        (Alarm("kept", "above", 2.0, of="start", window=2), [1, 1, 1, 1, 3, 4, 5], [6]),
        (Alarm("other", "below", 9.0, window=1), [1, 1, 1], []),
    ],
)
def test_alarms_speak_once_when_they_begin(alarm, values, at):
    run = Run(Guard(alarms=(alarm,)))
    assert [step for step, value in enumerate(values, start=1) if events(run(kept=value))] == at


@pytest.mark.parametrize("settings", [{"warm_up": 1}, {"threshold": 0}, {"probation": 0}, {"max_skipped": -1}])
def test_numbers_that_make_no_sense(settings):
    with pytest.raises(UserError, match="guard"):
        Guard(**settings)
