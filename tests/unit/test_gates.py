"""Every gate by hand. Those on the student's likelihood and confidence that came first are in test_compatibility.py."""

import jax.numpy as jnp
import numpy as np
import pytest

from mixdistill import gates
from mixdistill.losses import cross_entropy
from mixdistill.objective import Objective, Term, combine, sums_of_signals
from mixdistill.signals.signal import Scheduled, use

# One row: trace 1 with a prompt token, steps 1 and 2; trace 2 with one step; padding.
SEGMENT = jnp.array([[1, 1, 1, 1, 1, 2, 2, 0]])
STEP = jnp.array([[0, 1, 1, 2, 2, 1, 1, 0]])
VALID = STEP > 0
TRACE = jnp.array([[0, 0, 0, 0, 0, 1, 1, 2]])
STEPS = jnp.array([[0, 1, 1, 2, 2, 3, 3, 4]])


def kept(gate):
    return np.asarray(gate, np.float32)[VALID].tolist()


def per_trace(first, second):
    return jnp.array([[first] * 5 + [second] * 2 + [0.0]])


def test_thresholds_of_any_score():
    score = jnp.array([[1.0, 2.0, 3.0, jnp.nan]])
    assert gates.at_most(score, threshold=2.0).tolist() == [[True, True, False, False]]
    assert gates.at_least(score, threshold=2.0).tolist() == [[False, True, True, False]]
    soft = gates.soft_at_most(score[:, :3], threshold=2.0, width=0.5)
    np.testing.assert_allclose(soft, [[1 / (1 + np.exp(-2)), 0.5, 1 / (1 + np.exp(2))]], rtol=1e-6)


@pytest.mark.parametrize(("keep", "expected"), [(1.0, [1, 1, 1]), (0.7, [1, 1, 1]), (0.6, [1, 0, 1]), (0.0, [1, 0, 0])])
def test_lowest_traces_keeps_a_share_and_never_nothing(keep, expected):
    score = jnp.array([[1.0, 1.0, 3.0, 2.0, 2.0]])
    run = jnp.array([[0, 0, 1, 2, 2]])
    got = gates.lowest_traces(score, jnp.ones_like(run, bool), run, keep=keep)
    assert got.tolist() == [[bool(expected[r]) for r in (0, 0, 1, 2, 2)]]


def test_correct():
    got = gates.correct(jnp.array([[1.0, 0.0, jnp.nan]]), wrong=0.25, ungraded=0.5)
    assert got.tolist() == [[1, 0.25, 0.5]]


def test_length_counts_completion_tokens():
    assert kept(gates.length(VALID, TRACE, longest=3)) == [0, 0, 0, 0, 1, 1]
    assert kept(gates.length(VALID, TRACE, shortest=4, longest=4)) == [1, 1, 1, 1, 0, 0]
    assert kept(gates.length(VALID, TRACE)) == [1] * 6


def test_trace_scores_of_further_forwards():
    assert kept(gates.difficulty(per_trace(0.9, 1.0))) == [1, 1, 1, 1, 0, 0]
    assert kept(gates.difficulty(per_trace(0.1, 0.4), easiest=0.2)) == [0, 0, 0, 0, 1, 1]
    assert kept(gates.local_naturalness(per_trace(-1.0, -2.0), threshold=-1.5)) == [1, 1, 1, 1, 0, 0]
    assert kept(gates.aslec(per_trace(-2.0, -1.0), threshold=-1.5)) == [0, 0, 0, 0, 1, 1]


def test_paced_peaks_where_problems_are_sometimes_solved():
    rate = jnp.array([[0.0, 0.5, 0.75, 1.0]])
    np.testing.assert_allclose(gates.paced(rate), [[0, 1, 0.75, 0]])
    np.testing.assert_allclose(gates.paced(rate, a=3.0), [[0, 16 / 27, 1, 0]], rtol=1e-6)


def test_compact_is_a_softmax_over_traces_with_mean_weight_one():
    got = gates.compact(per_trace(1.0, 0.0), per_trace(2.0, 1.0), per_trace(0.5, 1.5), VALID, TRACE, temperature=3.0)
    share = np.exp([2.5 / 3, -0.5 / 3]) / np.exp([2.5 / 3, -0.5 / 3]).sum()
    np.testing.assert_allclose(kept(got), [2 * share[0]] * 4 + [2 * share[1]] * 2, rtol=1e-6)
    unknown = gates.compact(per_trace(jnp.nan, 9.0), per_trace(0, 0), per_trace(0, 0), VALID, TRACE)
    assert kept(unknown) == [0, 0, 0, 0, 1, 1]


def test_sure_tokens():
    c = jnp.array([[0.0, 1, 2, 3, 4, 5, 6, 0]])
    assert kept(gates.sure_tokens(c, VALID, quantile=0.34)) == [0, 0, 1, 1, 1, 1]
    assert kept(gates.sure_tokens(c, VALID, quantile=0.0, at_least=4.5)) == [0, 0, 0, 0, 1, 1]


def test_teacher_confidence_lets_silent_teachers_pass():
    means = jnp.array([[jnp.nan, -1, -1, -3, -3, jnp.nan, jnp.nan, jnp.nan]])
    assert kept(gates.teacher_confidence(means, VALID, STEPS, quantile=0.5)) == [1, 1, 0, 0, 1, 1]
    assert kept(gates.teacher_confidence(means, VALID, STEPS, quantile=0.0, at_least=-0.5)) == [0, 0, 0, 0, 1, 1]


def test_token_selection():
    logprob = jnp.log(jnp.array([[0.5, 0.25, 0.125, 1.0]]))
    np.testing.assert_allclose(gates.dft(logprob), [[0.5, 0.25, 0.125, 1.0]], rtol=1e-6)
    everywhere = jnp.ones((1, 4), bool)
    reference = jnp.log(jnp.array([[0.5, 0.5, 0.5, 0.5]]))  # excess loss 0, ln 2, 2 ln 2, -ln 2
    assert gates.rho1(logprob, reference, everywhere, keep=0.5).tolist() == [[False, True, True, False]]
    assert gates.t3s(logprob, reference).tolist() == [[True, True, True, False]]
    entropy = jnp.array([[0.1, 2.0, 1.0, 0.5]])
    assert gates.high_entropy(entropy, everywhere, keep=0.25).tolist() == [[False, True, False, False]]
    np.testing.assert_allclose(gates.entropy_weight(entropy, full=1.0), [[0.1, 1, 1, 0.5]], rtol=1e-6)
    assert gates.entropy_weight(jnp.array([[-1e-7]])).tolist() == [[0]]  # rounding of a sure token


def test_seam_closes_the_tokens_after_a_change_of_teacher_inside_a_trace():
    teacher = jnp.array([[0, 0, 1, 1, 1, 2, 2, 0]])  # a seam in trace 1; trace 2 is another's from its start
    assert kept(gates.seam(teacher, TRACE, tokens=1)) == [1, 0, 1, 1, 1, 1]
    assert kept(gates.seam(teacher, TRACE, tokens=2)) == [1, 0, 0, 1, 1, 1]
    assert kept(gates.seam(teacher, TRACE, tokens=9)) == [1, 0, 0, 0, 1, 1]
    twice = jnp.array([[0, 0, 1, 0, 0, 2, 1, 0]])
    assert kept(gates.seam(twice, TRACE, tokens=1)) == [1, 0, 0, 1, 1, 0]


def test_has_teacher_topk():
    assert gates.has_teacher_topk(jnp.array([[jnp.nan, -1.0, -jnp.inf]])).tolist() == [[False, True, True]]


def test_sequence_mean_makes_the_objective_average_traces():
    nll = jnp.array([[99.0, 1, 2, 3, 2, 6, 8, 99]])  # means 2 and 7; over tokens 22 / 6
    given = {
        "valid": VALID,
        "segment_id": SEGMENT,
        "teacher_id": jnp.zeros_like(SEGMENT),
        "content": VALID,
        "label_logprob": -nll,
    }
    for gate, expected in (((), 22 / 6), ((gates.sequence_mean,), 4.5), ((use(gates.sequence_mean, length=3.0),), 4.5)):
        objective = Objective({"a": Term(cross_entropy, gates=gate)}).with_teachers(("t",))
        loss, _ = combine(objective, sums_of_signals(objective, given, train_step=0))
        np.testing.assert_allclose(loss.mean(), expected, rtol=1e-6)


def test_a_threshold_follows_the_train_step():
    gate = use(gates.at_most, score="trace_surprisal", threshold=Scheduled(lambda step: 3.0 - step))
    score = {"trace_surprisal": jnp.array([[1.5]])}
    assert gate({**score, "train_step": 1}).tolist() == [[True]]
    assert gate({**score, "train_step": 2}).tolist() == [[False]]
