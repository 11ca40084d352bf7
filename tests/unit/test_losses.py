"""Every loss by hand: values, minima, gradients and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixdistill import losses
from mixdistill.errors import UserError
from mixdistill.losses.buckets import kl, student_buckets, teacher_buckets
from mixdistill.objective import Objective, Term, sums
from mixdistill.signals.mean_logit import mean_logit
from mixdistill.signals.signal import use

# Teacher: .5 .3 and a tail of .2. Student, at the same two tokens: .25 .25 and a tail of .5.
TEACHER, STUDENT = np.array([0.5, 0.3, 0.2]), np.array([0.25, 0.25, 0.5])
TOP, TAIL = jnp.log(TEACHER[None, None, :2]), jnp.log(TEACHER[None, None, 2])
OWN = jnp.log(STUDENT[None, None, :2])


def divergence(p, q):
    return float((p * np.log(p / q)).sum())


def test_z_loss_is_the_square():
    assert losses.z_loss(jnp.array([[3.0, -2.0]])).tolist() == [[9, 4]]


def test_label_smoothing_is_cross_entropy_against_the_mixed_target():
    random = np.random.default_rng(0)
    hidden, unembed = jnp.asarray(random.normal(size=(1, 2, 4))), jnp.asarray(random.normal(size=(4, 7)))
    logits = np.asarray(hidden @ unembed)
    logprob = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    target = 0.9 * np.eye(7)[[2, 5]] + 0.1 / 7
    got = losses.label_smoothing(
        jnp.asarray([[logprob[0, 0, 2], logprob[0, 1, 5]]]),
        jnp.asarray(np.log(np.exp(logits).sum(-1))),
        mean_logit(hidden, unembed),
    )
    np.testing.assert_allclose(got, -(target * logprob).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(mean_logit(hidden, unembed.T, layout="vd"), mean_logit(hidden, unembed), rtol=1e-5)


def test_mean_logit_gradient_is_that_of_the_mean_and_a_dead_token_gives_none():
    hidden, unembed = jnp.array([[[1.0, 2.0], [jnp.nan, 3.0]]]), jnp.array([[1.0, 3.0, 5.0], [2.0, 2.0, 8.0]])

    def first(hidden, unembed):
        return jnp.where(jnp.array([[True, False]]), mean_logit(hidden, unembed), 0.0).sum()

    to_hidden, to_unembed = jax.grad(first, argnums=(0, 1))(hidden, unembed)
    np.testing.assert_allclose(to_hidden, [[[3, 4], [0, 0]]])
    np.testing.assert_allclose(to_unembed, [[1 / 3] * 3, [2 / 3] * 3], rtol=1e-6)


def test_mean_logit_refuses_a_soft_cap():
    with pytest.raises(UserError, match="soft cap"):
        mean_logit(jnp.ones((1, 1, 2)), jnp.ones((2, 3)), soft_cap=30.0)


def test_buckets_hold_everything():
    np.testing.assert_allclose(jnp.exp(student_buckets(OWN))[0, 0], STUDENT, rtol=1e-6)
    np.testing.assert_allclose(jnp.exp(teacher_buckets(TOP, TAIL))[0, 0], TEACHER, rtol=1e-6)
    np.testing.assert_allclose(kl(jnp.log(TEACHER), jnp.log(STUDENT)), divergence(TEACHER, STUDENT), rtol=1e-6)


def test_divergences_by_hand():
    middle = 0.3 * TEACHER + 0.7 * STUDENT
    expected = [
        (losses.forward_kl, divergence(TEACHER, STUDENT)),
        (losses.reverse_kl, divergence(STUDENT, TEACHER)),
        (use(losses.skew_kl, skew=0.3), divergence(TEACHER, middle)),
        (use(losses.skew_kl, skew=0.0), divergence(TEACHER, STUDENT)),
        (use(losses.jsd, beta=0.3), 0.3 * divergence(TEACHER, middle) + 0.7 * divergence(STUDENT, middle)),
    ]
    values = {"topk_logprob": OWN, "teacher_topk_logprob": TOP, "teacher_tail_logprob": TAIL}
    for loss, value in expected:
        np.testing.assert_allclose(use(loss)(values), [[value]], rtol=1e-5)
    p, q = STUDENT[:2], TEACHER[:2]
    np.testing.assert_allclose(losses.topk_reverse_kl(OWN, TOP), [[(p * np.log(p / q) - p + q).sum()]], rtol=1e-5)


@pytest.mark.parametrize("loss", [losses.forward_kl, losses.reverse_kl, losses.skew_kl, losses.jsd])
def test_divergences_are_zero_with_zero_gradient_at_equality_and_finite_at_the_edge(loss):
    value, gradient = jax.value_and_grad(lambda own: loss(own, TOP, TAIL).sum())(TOP)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    # As logits: the log-probabilities' gradient, their normaliser's share taken out, is zero.
    by_logit = gradient[0, 0] - TEACHER[:2] * gradient.sum()
    np.testing.assert_allclose(by_logit, 0, atol=1e-6)
    nothing_left = jnp.log(jnp.array([[[0.6, 0.4]]]))  # the student has no tail, the teacher none at one token
    for own, top, tail in ((nothing_left, TOP, TAIL), (OWN, TOP.at[..., 1].set(-jnp.inf), TAIL - jnp.inf)):
        value, gradient = jax.value_and_grad(lambda own, top=top, tail=tail: loss(own, top, tail).sum())(own)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_the_corrected_top_k_reverse_kl_has_its_minimum_at_equality():
    gradient = jax.grad(lambda own: losses.topk_reverse_kl(own, TOP).sum())
    np.testing.assert_allclose(gradient(TOP), 0, atol=1e-7)
    np.testing.assert_allclose(losses.topk_reverse_kl(TOP, TOP), 0, atol=1e-7)
    assert (losses.topk_reverse_kl(TOP - 3.0, TOP) > 0).all()  # taking mass away costs


def test_jsd_refuses_its_ends():
    for beta in (0.0, 1.0, 1.5):
        with pytest.raises(UserError, match="take forward_kl or reverse_kl"):
            losses.jsd(OWN, TOP, TAIL, beta=beta)


def test_step_contrast_imitates_good_steps_and_unlearns_bad_ones():
    logprob = jnp.log(jnp.array([[0.25, 0.25, 0.25]]))
    got = losses.step_contrast(logprob, jnp.array([[1.0, 0.0, 0.5]]))
    np.testing.assert_allclose(got, [[-np.log(0.25), -np.log(0.75), -0.5 * np.log(0.25 * 0.75)]], rtol=1e-6)
    value, gradient = jax.value_and_grad(lambda lp: losses.step_contrast(lp, jnp.zeros((1, 1))).sum())(
        jnp.zeros((1, 1))
    )
    np.testing.assert_allclose(value, -np.log(1e-6), rtol=1e-3)
    assert np.isfinite(gradient).all()


def test_an_objective_takes_the_student_at_the_teachers_ids():
    """KL to a teacher that is the student itself, through the whole objective, is zero."""
    random = np.random.default_rng(0)
    hidden, unembed = random.normal(size=(2, 4, 6)).astype(np.float32), random.normal(size=(6, 9)).astype(np.float32)
    logits = hidden @ unembed
    logprob = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    ids = np.argsort(-logprob, axis=-1)[..., :3]
    top = np.take_along_axis(logprob, ids, -1)
    batch = {name: np.ones((2, 4), np.int32) for name in ("segment_id", "step_id", "tokens", "position", "target")}
    batch |= {
        "valid": np.ones((2, 4), bool),
        "content": np.ones((2, 4), bool),
        "teacher_id": np.zeros((2, 4), np.int32),
    }
    batch |= {"teacher_topk_ids": ids, "teacher_topk_logprob": top}
    batch |= {"teacher_tail_logprob": np.log1p(-np.exp(top).sum(-1))}
    student = type(
        "S",
        (),
        {
            "hidden": lambda self, params, batch: hidden,
            "unembed": lambda self, params: unembed,
            "vocab_size": 9,
            "soft_cap": None,
            "unembed_layout": "dv",
        },
    )()
    objective = Objective({"kd": Term(losses.forward_kl)}).with_teachers(("t",))
    assert objective.batch_names == ("teacher_tail_logprob", "teacher_topk_ids", "teacher_topk_logprob")
    total = sums(objective, student, {}, batch, train_step=0)
    np.testing.assert_allclose(total.loss, 0, atol=1e-5)
    del batch["teacher_topk_ids"]
    with pytest.raises(UserError, match="no 'teacher_topk_ids'"):
        sums(objective, student, {}, batch, train_step=0)
