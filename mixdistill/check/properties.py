"""The properties, one function each: it raises AssertionError with the (smallest) counterexample, or returns what there
is to say: nothing, a remark, or the reason why the property is not defined here."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixdistill.check import cost
from mixdistill.check.bench import Bench, Measured
from mixdistill.check.counterexample import GAPS, JOINED, MASKS, ORDERS, PLACES, say, search
from mixdistill.check.traces import NUM_TRACES, alone, arrange, joined, make_signals, signals, student
from mixdistill.mesh import FSDP, make_mesh, sharding
from mixdistill.objective import sums_and_gradients

TOLERANCE = 1e-4  # of the largest entry: float32 sums in another order
SURE = 4.0  # logits so many times as large: float32 probabilities of exactly 1 and log-probabilities down to -60
NUM_PARTS, NUM_DEVICES = 4, 8


class Skip(str):
    """The reason why a property is not defined for a function."""


def keeps_some_tokens(bench: Bench) -> str:
    for group, weight in zip(bench.objective.groups, bench.base.weight, strict=True):
        assert weight > 0, (
            f"the gates of {' and '.join(group)} close every token of the random traces, so nothing was tried; set "
            "knobs that keep some"
        )
    return f"{float(bench.tallies['kept'].mean()):.0%} of the tokens of the random traces"


def gates_are_finite_and_not_negative(bench: Bench) -> None:
    for name, tally in bench.tallies.items():
        if name.startswith("invalid/"):
            gate = name.rpartition("/")[2]
            assert tally.sum == 0, f"{gate} is NaN, infinite or negative at {int(tally.sum)} tokens of ordinary traces"


def loss_has_a_finite_gradient(bench: Bench) -> None:
    assert np.isfinite(bench.base.loss).all(), f"it adds up to {bench.base.loss.sum()} over ordinary traces"
    _finite(bench.base.gradient)
    moved = any(leaf.any() for leaf in bench.base.gradient.values())
    assert moved, "its gradient is zero everywhere, so nothing is learned; if it is a gate, check it as one (--gate)"


def fused_equals_dense(bench: Bench) -> None:
    _same(bench.base, bench.measure(bench.batch, dense=True), "tiled vocabulary pass", "dense reference")


def jit_equals_eager(bench: Bench) -> None:
    batch = arrange(bench.traces, joined(bench.traces, [True] * (NUM_TRACES - 1)))
    made = signals(bench.params, batch)
    compiled, eager = jax.device_get((bench.compiled(batch, made), bench.plain(batch, made)))
    _same(compiled, eager, "compiled", "eager")


def zero_weights_give_zero_gradient(bench: Bench) -> None:
    shut = {**bench.batch, "check_open": np.zeros_like(bench.batch["check_open"])}
    got = bench.measure(shut)
    assert not got.loss.any(), f"with every gate closed the loss adds up to {got.loss.sum()}"
    _no_gradient(got.gradient, "with every gate closed")


def closed_tokens_get_no_gradient(bench: Bench) -> None:
    def wrong(places) -> str | None:
        batch = bench.put(bench.batch, "check_open", places, 0.0)
        reached = (bench.measure(batch).gradient["probe"] != 0).any(-1) & bench.closed(batch)
        return f"a gradient reaches {_tokens(reached)}" if reached.any() else None

    _hold(bench, PLACES, wrong, lambda places: f"with a gate closed on {say(places)}")


def gradient_is_finite_under_any_mask(bench: Bench) -> None:
    def wrong(masks) -> str | None:
        batch = bench.batch
        for field, place in masks:
            batch = bench.put(batch, field, [place], False)
        batch = {**batch, "content": batch["content"] & batch["valid"]}
        try:
            got = bench.measure(batch)
            assert np.isfinite(got.loss).all(), f"the loss adds up to {got.loss.sum()}"
            _finite(got.gradient)
        except AssertionError as error:
            return str(error)
        return None

    def describe(masks) -> str:
        fields = sorted({field for field, _ in masks})
        return "; ".join(f"{field} False on {say([p for f, p in masks if f == field])}" for field in fields)

    _hold(bench, MASKS, wrong, describe)


def finite_for_a_sure_student(bench: Bench) -> None:
    got = bench.measure(bench.batch, {**bench.params, "unembed": SURE * bench.params["unembed"]})
    try:
        assert np.isfinite(got.loss).all(), f"the loss adds up to {got.loss.sum()}"
        _finite(got.gradient)
    except AssertionError as error:
        raise AssertionError(f"where p(target) is exactly 1, or as small as e^-60, {error}") from None


def nan_under_a_closed_gate_goes_nowhere(bench: Bench) -> None:
    def wrong(places) -> str | None:
        shut = bench.put(bench.batch, "check_open", places, 0.0)
        spoilt, probe = dict(shut), np.array(bench.params["probe"])
        for name, values in shut.items():
            if np.issubdtype(values.dtype, np.floating) and name != "check_open":
                spoilt = bench.put(spoilt, name, places, np.nan)
        for trace, token in places:
            probe[trace, slice(None) if token is None else token] = np.nan
        got = bench.measure(spoilt, {**bench.params, "probe": jnp.asarray(probe)})
        if not np.isfinite(got.loss).all():
            return f"the loss adds up to {got.loss.sum()}"
        if bad := [name for name, leaf in got.gradient.items() if not np.isfinite(leaf).all()]:
            return f"the gradient of {bad[0]} is not finite"
        others = sorted(set(range(NUM_TRACES)) - {trace for trace, _ in places})
        expected = bench.measure(shut).gradient["probe"][others]
        if not bench.batch_wide and _distance(got.gradient["probe"][others], expected) > TOLERANCE:
            return "the gradient of other traces changes"
        return None

    _hold(bench, PLACES, wrong, lambda places: f"with NaN at {say(places)}, and a gate closed there")


def packed_equals_unpacked(bench: Bench) -> None:
    def rows(with_next):
        return joined(bench.traces, with_next)

    def describe(with_next) -> str:
        return f"in rows {[[number for _, number in row] for row in rows(with_next)]}"

    _rearranged(bench, JOINED, rows, describe)


def padding_changes_nothing(bench: Bench) -> None:
    def describe(gaps) -> str:
        return "behind padding: " + ", ".join(f"trace {i} behind {gap}" for i, gap in enumerate(gaps) if gap)

    _rearranged(bench, GAPS, lambda gaps: alone(gaps=gaps), describe)
    assert not bench.base.gradient["probe"][-1].any(), "padding gets a gradient"


def order_of_rows_changes_nothing(bench: Bench) -> None:
    _rearranged(bench, ORDERS, alone, lambda order: f"in the order {list(order)}")


def microbatches_equal_one_batch(bench: Bench) -> str | None:
    if bench.batch_wide:
        return Skip("it is marked batch_wide: it compares the traces of a microbatch with each other")
    rows = alone()
    parts = [[row if b % NUM_PARTS == part else [] for b, row in enumerate(rows)] for part in range(NUM_PARTS)]
    first, *rest = [bench.measure(arrange(bench.traces, part)) for part in parts]
    total = sum(rest, first)
    _same(total, bench.base, f"{NUM_PARTS} microbatches", "one batch")
    return None


def eight_devices_equal_one(bench: Bench) -> str | None:
    if len(jax.devices()) < NUM_DEVICES:
        return Skip(
            f"{len(jax.devices())} devices here; set XLA_FLAGS=--xla_force_host_platform_device_count={NUM_DEVICES}"
        )
    where = sharding(make_mesh({"data": NUM_DEVICES}, jax.devices()[:NUM_DEVICES]), FSDP, ("batch",))
    made = signals(bench.params, bench.batch)
    split = bench.compiled(*jax.device_put((bench.batch, made), where))
    eight, one = jax.device_get((split, bench.compiled(bench.batch, made)))
    _same(eight, one, "eight devices", "one")
    return None


def float32_for_bfloat16(bench: Bench) -> None:
    def narrow(x):
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(x.shape, jnp.bfloat16 if floating else x.dtype)

    def results(params, batch):
        context = {"train_step": jnp.int32(0), "memory": bench.memory}
        sums = sums_and_gradients(bench.objective, student(), params, batch, **context)
        made = {**batch, **make_signals(params, batch), **context["memory"], "train_step": 0}
        values = bench.objective.graph.compute({**made, "teachers": bench.objective.teachers})
        own = {
            fn.name: fn(values)
            for term in bench.objective.terms.values()
            for fn in (term.bound_loss, *term.bound_gates)
        }
        return sums, own | {name: values[name] for name in bench.objective.graph.order}

    (total, _), own = jax.eval_shape(results, jax.tree.map(narrow, bench.params), jax.tree.map(narrow, bench.batch))
    del own["check_open"]
    for name, leaf in {**own, "the sum": total.loss, "the weight": total.weight}.items():
        half = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 4
        assert not half, f"{name} is {leaf.dtype} where the student and the batch are bfloat16; compute in float32"


def costs_like_cross_entropy(bench: Bench) -> str:
    ratio = cost.ratio(bench)
    said = f"{ratio:.3f} times the FLOPs of cross entropy ({cost.SIZE})"
    assert ratio <= cost.LIMIT, f"{said}; at most {cost.LIMIT}"
    return said


PROPERTIES: Sequence[Callable[[Bench], str | None]] = (
    keeps_some_tokens,
    gates_are_finite_and_not_negative,
    loss_has_a_finite_gradient,
    fused_equals_dense,
    jit_equals_eager,
    zero_weights_give_zero_gradient,
    closed_tokens_get_no_gradient,
    gradient_is_finite_under_any_mask,
    finite_for_a_sure_student,
    nan_under_a_closed_gate_goes_nowhere,
    packed_equals_unpacked,
    padding_changes_nothing,
    order_of_rows_changes_nothing,
    microbatches_equal_one_batch,
    eight_devices_equal_one,
    float32_for_bfloat16,
    costs_like_cross_entropy,
)


def _hold(bench: Bench, cases: Any, wrong: Callable[[Any], str | None], describe: Callable[[Any], str]) -> None:
    found = search(cases, wrong, bench.num_examples)
    assert found is None, f"{describe(found[0])}: {found[1]}" if found else ""


def _rearranged(bench: Bench, cases: Any, rows: Callable[[Any], Any], describe: Callable[[Any], str]) -> None:
    """The traces in other places give the same sums and the same gradient."""

    def wrong(case) -> str | None:
        return _difference(bench.measure(arrange(bench.traces, rows(case))), bench.base, "it", "one trace a row")

    _hold(bench, cases, wrong, describe)


def _same(a: Measured, b: Measured, name_a: str, name_b: str) -> None:
    difference = _difference(a, b, name_a, name_b)
    assert difference is None, difference


def _difference(a: Measured, b: Measured, name_a: str, name_b: str) -> str | None:
    for what in ("loss", "weight"):
        x, y = getattr(a, what), getattr(b, what)
        if _distance(x, y) > TOLERANCE:
            return f"{name_a} gives a {what} sum of {x.sum():.6g}, {name_b} {y.sum():.6g}"
    worst = {name: _distance(leaf, b.gradient[name]) for name, leaf in a.gradient.items()}
    name = max(worst, key=lambda key: worst[key])
    if worst[name] > TOLERANCE:
        return f"the gradient of {name} differs by {worst[name]:.2g} of its largest entry: {name_a} against {name_b}"
    return None


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference as a share of the largest entry; what is not finite differs from everything."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return np.inf
    return float(np.abs(a - b).max(initial=0) / max(np.abs(b).max(initial=0), 1e-6))


def _finite(gradient: dict[str, Any]) -> None:
    for name, leaf in gradient.items():
        assert np.isfinite(leaf).all(), f"the gradient of {name} is not finite"


def _no_gradient(gradient: dict[str, Any], when: str) -> None:
    for name, leaf in gradient.items():
        assert not leaf.any(), f"{when} the gradient of {name} is not exactly zero (up to {np.abs(leaf).max():.2g})"


def _tokens(found: np.ndarray) -> str:
    return say([(int(trace), int(token)) for trace, token in np.argwhere(found)[:3]])
