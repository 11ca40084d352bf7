"""Injection by parameter name: what resolves, in which order, and what the errors say."""

import pytest

from mixdistill.errors import UserError
from mixdistill.signals.signal import Scheduled, resolve, use


def double(x):
    return 2 * x


def plus(double, y, *, by: float = 1.0):
    return double + y + by


def needs_knob(x, *, limit):
    return x < limit


def test_derived_signals_are_computed_in_order_and_once():
    graph = resolve([plus, double], (plus, double), {"x", "y", "z"})
    assert list(graph.order) == ["double"]
    assert graph.roots == {"x", "y"}
    assert use(plus, by=5.0)(graph.compute({"x": 3, "y": 1})) == 12


def test_only_what_is_read_is_computed():
    assert resolve([double], (plus, double), {"x", "y"}).order == {}
    assert resolve([use(needs_knob, limit=1)], (plus, double), {"x", "y"}).roots == {"x"}


def test_a_parameter_can_read_another_signal_with_its_own_knobs():
    def half(x, *, of=2.0):
        return x / of

    low, high = use(needs_knob, limit=1, x=use(half, of=4.0)), use(needs_knob, limit=1, x=half)
    graph = resolve([low, high], (), {"x"})
    values = graph.compute({"x": 3.0})
    assert list(graph.order) == ["half(of=4.0)", "half"]
    assert low(values)
    assert not high(values)
    assert low.label == "needs_knob(x=half(of=4.0), limit=1)"


def test_a_parameter_can_read_a_given_signal_by_name():
    bound = use(double, x="y")
    assert resolve([bound], (), {"y"}).roots == {"y"}
    assert bound({"y": 4}) == 8


def test_knobs_can_be_set_in_turns_and_follow_the_train_step():
    bound = use(use(plus, double="x"), by=Scheduled(lambda train_step: 10 * train_step))
    assert resolve([bound], (), {"x", "y", "train_step"}).roots == {"x", "y", "train_step"}
    assert bound({"x": 1, "y": 2, "train_step": 3}) == 33


def test_a_signal_with_a_knob_set_replaces_the_plain_one():
    def third(plus):
        return plus

    graph = resolve([third], (double, use(plus, by=7.0)), {"x", "y"})
    assert graph.compute({"x": 0, "y": 0})["plus"] == 7


def variadic(*x):
    return x


def defaulted(x=1):
    return x


def circle_a(circle_b):
    return circle_b


def circle_b(circle_a):
    return circle_a


def misspelt(doubel):
    return doubel


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: resolve([misspelt], (double,), {"x"}), r"reads 'doubel'; did you mean 'double'\? known signals"),
        (lambda: resolve([circle_a], (circle_a, circle_b), {"x"}), "circle: circle_b -> circle_a -> circle_b"),
        (lambda: resolve([], (double, use(double, x="y")), {"x"}), "two signals of the name 'double'"),
        (lambda: resolve([], (double,), {"double"}), "two signals of the name 'double'"),
        (lambda: resolve([use(misspelt, doubel=double)], (), {"double", "x"}), "two signals of the name 'double'"),
        (lambda: use(plus, bye=2.0), r"plus: unknown knob 'bye'; did you mean 'by'\?"),
        (lambda: use(needs_knob), r"needs_knob needs 'limit': use\(needs_knob, limit=...\)"),
        (lambda: use(variadic), "variadic takes"),
        (lambda: use(defaulted), "'x' is positional"),
        (lambda: use(3), "3 is not a function"),
        (lambda: use(double, x=3), "3 is not a function"),
    ],
)
def test_errors_come_when_built_and_say_what_to_do(build, message):
    with pytest.raises(UserError, match=message):
        build()


def test_an_error_inside_a_function_names_it():
    with pytest.raises(TypeError) as caught:
        use(double, x="y")({"y": object()})
    assert caught.value.__notes__ == ["double"]
