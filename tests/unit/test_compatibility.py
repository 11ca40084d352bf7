"""Agreement and confidence signals and the gates on them, all by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from mixdistill import gates
from mixdistill.errors import UserError
from mixdistill.losses import cross_entropy
from mixdistill.signals import agreement, confidence

# One row: trace 1 with a prompt token, steps 1 and 2; trace 2 with one step; padding.
SEGMENT = jnp.array([[1, 1, 1, 1, 1, 2, 2, 0]])
STEP = jnp.array([[0, 1, 1, 2, 2, 1, 1, 0]])
VALID = STEP > 0
CONTENT = jnp.array([[False, True, False, True, True, True, False, False]])
SURPRISAL = jnp.array([[50.0, 1, 9, 2, 3, 4, 8, 70]])
TRACE = jnp.array([[0, 0, 0, 0, 0, 1, 1, 2]])
STEPS = jnp.array([[0, 1, 1, 2, 2, 3, 3, 4]])


def close(got, expected):
    np.testing.assert_allclose(np.asarray(got)[VALID], np.asarray(expected, np.float32), rtol=1e-6)


def test_cross_entropy_is_minus_the_log_probability():
    np.testing.assert_array_equal(cross_entropy(jnp.log(jnp.array([[0.25]]))), -np.log(np.float32(0.25)))


def test_surprisal_signals():
    np.testing.assert_array_equal(agreement.surprisal(-SURPRISAL), SURPRISAL)
    close(agreement.worst_surprisal(SURPRISAL, CONTENT, TRACE), [3, 3, 3, 3, 4, 4])
    close(agreement.trace_surprisal(SURPRISAL, CONTENT, TRACE), [2, 2, 2, 2, 4, 4])
    close(agreement.step_surprisal(SURPRISAL, CONTENT, STEPS), [1, 1, 2.5, 2.5, 4, 4])


def test_a_trace_without_content_tokens_costs_nothing():
    none = jnp.zeros_like(CONTENT)
    close(agreement.worst_surprisal(SURPRISAL, none, TRACE), [0] * 6)
    close(agreement.trace_surprisal(SURPRISAL, none, TRACE), [0] * 6)


def test_rank_surprisal_is_a_ratio_of_sums_with_clipped_ranks():
    rank = jnp.array([[99, 1, 200, 1, 3, 2, 4, 99]])
    close(agreement.trace_rank_surprisal(rank, SURPRISAL, VALID, TRACE), [105 / 15] * 4 + [6 / 12] * 2)
    close(agreement.trace_rank_surprisal(rank, SURPRISAL, VALID, TRACE, max_rank=5), [10 / 15] * 4 + [6 / 12] * 2)
    assert np.isfinite(agreement.trace_rank_surprisal(rank, 0 * SURPRISAL, VALID, TRACE)).all()


def test_contradiction_wants_a_sure_student_and_an_implausible_target():
    target, top1 = jnp.log(jnp.array([[0.05, 0.05, 0.2, 0.75]])), jnp.log(jnp.array([[0.8, 0.6, 0.75, 0.75]]))
    assert agreement.contradiction(target, top1).tolist() == [[True, False, False, False]]


def test_confidence_signals():
    c = confidence.token_confidence(-jnp.array([[99.0, 4, 2, 6, 8, 5, 1, 99]]))
    close(confidence.step_mean_confidence(c, VALID, STEPS), [3, 3, 7, 7, 3, 3])
    close(confidence.trace_mean_confidence(c, VALID, TRACE), [5, 5, 5, 5, 3, 3])
    close(confidence.trace_lowest_confidence(c, VALID, TRACE, window=2), [3, 3, 3, 3, 3, 3])
    close(confidence.trace_lowest_confidence(c, VALID, TRACE, window=3), [4, 4, 4, 4, 3, 3])  # trace 2 is shorter
    close(confidence.step_lowest_confidence(c, VALID, STEPS, window=1), [2, 2, 6, 6, 1, 1])


@pytest.mark.parametrize("gate", [gates.worst_token, gates.mean_surprisal, gates.rank_surprisal])
def test_absolute_gates_keep_up_to_and_at_the_threshold(gate):
    scores = jnp.array([[2.9, 3.0, 3.1, jnp.nan]])
    assert gate(scores, threshold=3.0).tolist() == [[True, True, False, False]]


def test_teacher_weight():
    ids = jnp.array([[0, 1, 2]])
    weight = gates.teacher_weight(ids, ("a", "b", "c"), weights={"a": 0.5, "c": 0})
    assert weight.tolist() == [[0.5, 1, 0]]
    assert gates.teacher_weight(ids, ("a", "b", "c"), weights={"b": 2}, others=0.25).tolist() == [[0.25, 2, 0.25]]


@pytest.mark.parametrize(
    ("weights", "message"),
    [({"aa": 1}, "unknown teacher 'aa'; did you mean 'a'"), ({"a": -1}, "-1"), ({"a": float("nan")}, "nan")],
)
def test_teacher_weight_refuses(weights, message):
    with pytest.raises(UserError, match=message):
        gates.teacher_weight(jnp.zeros((1, 1), int), ("a", "b"), weights=weights)


def baseline(*values, seen=(1, 1)):
    return {"value": jnp.array(values), "num_updates": jnp.array(seen)}


def test_near_anchor_follows_the_anchors_running_value():
    ids, scores = jnp.array([[0, 1, 1, 0]]), jnp.array([[1.4, 1.6, 1.4, 9.0]])
    got = gates.near_anchor(scores, ids, ("f", "b"), baseline(1.0, 0.0), anchor="f", margin=0.5)
    assert got.tolist() == [[True, False, True, False]]
    unseen = gates.near_anchor(scores, ids, ("f", "b"), baseline(1.0, 0.0, seen=(0, 1)), anchor="f")
    assert unseen.tolist() == [[True, False, False, True]]
    with pytest.raises(UserError, match="unknown anchor 'g'"):
        gates.near_anchor(scores, ids, ("f", "b"), baseline(1.0, 0.0), anchor="g")


def test_near_own_mean_compares_each_teacher_with_itself():
    ids, scores = jnp.array([[0, 0, 1, 1]]), jnp.array([[1.4, 1.6, 1.6, 99.0]])
    assert gates.near_own_mean(scores, ids, baseline(1.0, 2.0)).tolist() == [[True, False, True, False]]
    assert gates.near_own_mean(scores, ids, baseline(1.0, 2.0, seen=(1, 0))).tolist() == [[True, False, True, True]]


def test_step_confidence_closes_the_least_sure_share_of_steps():
    scores = jnp.array([[0.0, 1, 1, 2, 2, 3, 3, 0]])

    def kept(**knobs):
        return np.asarray(gates.step_confidence(scores, VALID, STEPS, **knobs))[VALID].astype(int).tolist()

    assert kept(quantile=0.34) == [0, 0, 1, 1, 1, 1]
    assert kept(quantile=0.67) == [0, 0, 0, 0, 1, 1]
    assert kept(quantile=0.0) == [1] * 6
    assert kept(quantile=0.0, at_least=2.5) == [0, 0, 0, 0, 1, 1]


def test_global_confidence_counts_every_trace_once():
    scores = jnp.array([[0.0, 1, 1, 1, 1, 3, 3, 0]])
    kept = gates.global_confidence(scores, VALID, TRACE, quantile=0.5)
    assert np.asarray(kept)[VALID].astype(int).tolist() == [0, 0, 0, 0, 1, 1]


def test_no_contradiction_closes_the_token_or_its_step():
    target = jnp.log(jnp.array([[0.5, 0.01, 0.5, 0.5, 0.5, 0.5, 0.5, 0.01]]))
    top1 = jnp.log(jnp.full((1, 8), 0.9))
    token = gates.no_contradiction(target, top1, VALID, STEPS)
    step = gates.no_contradiction(target, top1, VALID, STEPS, whole_step=True)
    assert np.asarray(token)[VALID].astype(int).tolist() == [0, 1, 1, 1, 1, 1]
    assert np.asarray(step)[VALID].astype(int).tolist() == [0, 0, 1, 1, 1, 1]
