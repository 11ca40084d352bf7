"""Terms, gates and tallies by hand; groups and accumulation; what happens when nothing is left."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixdistill.errors import UserError
from mixdistill.gates import teacher_weight, worst_token
from mixdistill.losses import cross_entropy
from mixdistill.memory import running
from mixdistill.objective import (
    Objective,
    Term,
    combine,
    complaints,
    divisors,
    explain,
    mean_gradient,
    sums_of_signals,
)
from mixdistill.signals.signal import use
from mixdistill.training.hooks import Event, say_once

# Row 0: teacher 0 (3 tokens, the first is prompt), then teacher 1 (2 tokens). Row 1: teacher 1 (2 tokens), padding.
VALID = jnp.array([[False, True, True, True, True], [True, True, False, False, False]])
NLL = jnp.array([[9.0, 1, 2, 3, 5], [4, 6, 9, 9, 9]])
GIVEN = {
    "valid": VALID,
    "segment_id": jnp.array([[1, 1, 1, 2, 2], [1, 1, 0, 0, 0]]),
    "step_id": VALID.astype(jnp.int32),
    "teacher_id": jnp.array([[0, 0, 0, 1, 1], [1, 1, 0, 0, 0]]),
    "content": VALID.at[0, 2].set(False),
    "label_logprob": -NLL,
}
TEACHERS = ("ann", "bob")


def half_weight(valid):
    return 0.5 * jnp.ones_like(valid, jnp.float32)


def only_ann(teacher_id):
    return teacher_id == 0


def nothing(valid):
    return jnp.zeros_like(valid)


def made(terms, **options):
    return Objective(terms, **options).with_teachers(TEACHERS)


def count(objective, given=GIVEN, train_step=0, memory=None):
    return combine(objective, sums_of_signals(objective, given, train_step=train_step, memory=memory))


def means(tallies):
    return {name: np.asarray(tally.mean()).tolist() for name, tally in tallies.items()}


def test_plain_cross_entropy_is_the_mean_over_valid_tokens():
    loss, tallies = count(made({"imitate": Term(cross_entropy)}))
    got = means(tallies)
    assert (float(loss.sum), float(loss.weight)) == (21, 6)
    assert got["loss"] == got["loss/imitate"] == 3.5
    assert got["teacher/nll"] == [1.5, 4.5]
    assert got["teacher/content_nll"] == [1.0, 4.5]
    assert tallies["teacher/tokens"].sum.tolist() == [2, 4]
    assert float(tallies["tokens"].sum) == 6
    assert got["no_data"] == 0
    assert complaints(tallies) == []


def test_gates_multiply_and_a_closed_one_leaves_the_mean_of_the_rest():
    loss, tallies = count(made({"a": Term(cross_entropy, gates=(half_weight, only_ann))}))
    got = means(tallies)
    assert float(loss.mean()) == 1.5
    assert float(tallies["loss/a"].weight) == 1.0  # two tokens at half weight
    assert (got["gate/a/half_weight"], got["gate/a/only_ann"]) == (1.0, pytest.approx(1 / 3))
    assert got["teacher/gate/a/only_ann"] == got["teacher/kept"] == got["teacher/traces_kept"] == [1.0, 0.0]
    assert got["kept"] == pytest.approx(1 / 3)


def test_valid_normalisation_lets_a_closed_gate_shrink_the_step():
    assert float(count(made({"a": Term(cross_entropy, gates=(only_ann,))}, normalise="valid"))[0].mean()) == 0.5


def test_the_denominator_is_at_least_the_minimal_coverage():
    objective = made({"a": Term(cross_entropy, gates=(use(worst_token, threshold=2.5),))}, min_coverage=0.5)
    loss, tallies = count(objective)  # keeps ann's two tokens, of six: 3 nats over max(2, 0.5 * 6)
    assert float(loss.mean()) == 1.0
    assert means(tallies)["loss/a"] == 1.5


def test_terms_with_the_same_gates_share_a_group_and_coefficients_follow_the_train_step():
    def squared(label_logprob):
        return label_logprob**2

    gate = use(teacher_weight, weights={"bob": 0})
    objective = made(
        {
            "nll": Term(cross_entropy, gates=(gate,)),
            "square": Term(squared, coef=lambda t: 0.1 * t, gates=(use(teacher_weight, weights={"bob": 0}),)),
            "rest": Term(cross_entropy, coef=2.0),
        }
    )
    assert objective.groups == (("nll", "square"), ("rest",))
    total = sums_of_signals(objective, GIVEN, train_step=5)
    np.testing.assert_allclose(total.loss, [3 + 0.5 * 5, 2 * 21])
    np.testing.assert_allclose(divisors(objective, total), [2, 6])
    np.testing.assert_allclose(combine(objective, total)[0].mean(), 5.5 / 2 + 42 / 6)


def test_sums_of_microbatches_combine_to_the_whole_batch_loss_and_gradient():
    objective = made({"a": Term(cross_entropy, gates=(only_ann,)), "b": Term(cross_entropy, coef=0.3)})

    def sums(scale, given):
        return sums_of_signals(objective, {**given, "label_logprob": scale * given["label_logprob"]}, train_step=0)

    def with_gradients(given):
        return sums(1.0, given), tuple(jax.jacobian(lambda scale: sums(scale, given).loss)(1.0))

    def total_loss(scale):
        loss, _ = combine(objective, sums(scale, GIVEN))
        return loss.sum / loss.weight

    parts = [with_gradients({name: x[b : b + 1] for name, x in GIVEN.items()}) for b in range(2)]
    total, gradients = jax.tree.map(jnp.add, *parts)
    np.testing.assert_allclose(combine(objective, total)[0].mean(), total_loss(1.0), rtol=1e-6)
    np.testing.assert_allclose(mean_gradient(objective, total, gradients), jax.grad(total_loss)(1.0), rtol=1e-6)


def test_everything_closed_says_no_data():
    objective = made({"a": Term(cross_entropy, gates=(nothing,)), "b": Term(cross_entropy, coef=0.5, gates=(nothing,))})
    loss, tallies = count(objective)
    assert (float(loss.sum), float(loss.weight)) == (0, 0)
    assert float(tallies["no_data"].sum) == 1
    assert complaints(tallies) == ["no data: every gate of every term is closed, so nothing was learned"]
    assert np.isnan(means(tallies)["loss"])


def test_a_term_whose_gates_close_everything_learns_from_the_fallback_teacher():
    objective = made({"a": Term(cross_entropy, gates=(nothing,)), "b": Term(cross_entropy)}, fallback="bob")
    _, tallies = count(objective)
    assert float(tallies["loss/a"].mean()) == 4.5  # bob: 3, 5, 4, 6
    assert (float(tallies["fallback/a"].sum), float(tallies["fallback/b"].sum)) == (1, 0)
    assert complaints(tallies) == ["the gates of term a closed everything: it learned from the fallback teacher alone"]
    _, empty = count(objective, {**GIVEN, "valid": jnp.zeros_like(VALID)})
    assert float(empty["fallback/a"].sum) == 0


def test_an_empty_batch_is_no_data_too():
    loss, tallies = count(made({"a": Term(cross_entropy)}), {**GIVEN, "valid": jnp.zeros_like(VALID)})
    assert (float(loss.sum), float(loss.weight), float(tallies["no_data"].sum)) == (0, 0, 1)


def test_a_nan_under_a_closed_gate_is_counted_and_goes_nowhere():
    given = {**GIVEN, "label_logprob": (-NLL).at[0, 3].set(jnp.nan)}

    def curved(label_logprob):
        return jnp.sqrt(-label_logprob)

    objective = made({"a": Term(curved, gates=(only_ann,))})

    def loss(logprob):
        total = sums_of_signals(objective, {**given, "label_logprob": logprob}, train_step=0)
        return total.loss[0], total

    (value, total), gradient = jax.value_and_grad(loss, has_aux=True)(given["label_logprob"])
    np.testing.assert_allclose(value, 1 + np.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(gradient[0], [0, -0.5, -0.5 / np.sqrt(2), 0, 0], rtol=1e-6)
    assert not gradient[1].any()
    tallies = combine(objective, total)[1]
    assert tallies["teacher/nonfinite"].sum.tolist() == [0, 1]
    assert means(tallies)["teacher/nll"] == [1.5, 5.0]  # bob: 5, 4, 6


def test_negative_and_nan_gates_count_as_closed_and_are_reported():
    def broken(label_logprob):
        return jnp.where(label_logprob == -3, -1.0, jnp.where(label_logprob == -5, jnp.nan, 1.0))

    loss, tallies = count(made({"a": Term(cross_entropy, gates=(broken,))}))
    assert float(loss.mean()) == 13 / 4
    assert complaints(tallies) == ["gate a/broken gave NaN or a negative number at 2 tokens"]


def test_a_loss_that_is_not_finite_where_it_is_kept_is_reported():
    _, tallies = count(made({"a": Term(cross_entropy)}), {**GIVEN, "label_logprob": (-NLL).at[0, 3].set(-jnp.inf)})
    assert complaints(tallies) == [
        "loss a is not finite at tokens that its gates keep",
        "the student's log-probability of 1 tokens is not finite; no running estimate counts them",
    ]


def test_gates_are_never_differentiated():
    def own_probability(label_logprob):
        return jnp.exp(label_logprob)

    objective = made({"a": Term(cross_entropy, gates=(own_probability,))})

    def loss(logprob):
        return sums_of_signals(objective, {**GIVEN, "label_logprob": logprob}, train_step=0).loss[0]

    expected = jnp.where(VALID, -jnp.exp(-NLL), 0)
    np.testing.assert_allclose(jax.grad(loss)(GIVEN["label_logprob"]), expected, rtol=1e-6)


def test_watched_signals_and_scores_of_shards_are_logged_per_teacher():
    def surplus(surprisal, ledger):
        return surprisal - ledger

    objective = made({"a": Term(cross_entropy)}, watch=(surplus, "ledger"), fields=("ledger",))
    got = means(count(objective, {**GIVEN, "ledger": jnp.ones_like(NLL)})[1])
    assert got["teacher/surplus"] == [0.5, 3.5]
    assert got["teacher/ledger"] == [1.0, 1.0]


def test_repeated_gates_get_numbers():
    objective = made({"a": Term(cross_entropy, gates=(worst_token, use(worst_token, threshold=5.5)))})
    got = means(count(objective)[1])
    assert (got["gate/a/worst_token"], got["gate/a/worst_token_2"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3))


def test_the_vocabulary_pass_makes_only_what_is_read():
    assert Objective({"a": Term(cross_entropy)}).vocabulary_names == ("label_logprob",)
    text = explain(Objective({"a": Term(cross_entropy, gates=(worst_token,))}))
    assert "a = 1.0 x worst_token x cross_entropy" in text
    assert "worst_surprisal <- surprisal, content, trace_run" in text
    assert "vocabulary pass: label_logprob" in text


def scalar_gate(valid):
    return jnp.float32(1)


def clumsy(label_logprob, target):
    return label_logprob @ target


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Objective({}), "at least one term"),
        (lambda: Objective({"a": Term(cross_entropy)}, normalise="mean"), "'kept' or 'valid'"),  # type: ignore
        (lambda: Objective({"a": Term(cross_entropy)}, min_coverage=0), "min_coverage is 0"),
        (lambda: Objective({"a/b": Term(cross_entropy)}), "'a/b' has a '/'"),
        (lambda: Objective({"a": Term(use(cross_entropy, label_logprob="label_logprb"))}), "mean 'label_logprob'"),
        (lambda: Objective({"a": Term(cross_entropy)}, watch=("entropi",)), "did you mean 'entropy'"),
        (lambda: Objective({"a": Term(cross_entropy)}, watch=(use(worst_token, treshold=1),)), "knob 'treshold'"),
        (lambda: made({"a": Term(cross_entropy, gates=(scalar_gate,))}), r"gate scalar_gate gave shape \(\)"),
        (lambda: made({"a": Term(clumsy)}), "clumsy does not run on arrays"),
        (lambda: made({"a": Term(cross_entropy, gates=(use(teacher_weight, weights={"an": 1}),))}), "mean 'ann'"),
        (lambda: made({"a": Term(cross_entropy)}, memory={"m": running("teacher/nl")}), "'teacher/nl'"),
        (lambda: Objective({"a": Term(cross_entropy)}).with_teachers(("a", "a")), "each once"),
        (lambda: Objective({"a": Term(cross_entropy)}).with_teachers(()), "at least one"),
        (lambda: made({"a": Term(cross_entropy)}, fallback="bop"), "fallback teacher 'bop'; did you mean 'bob'"),
    ],
)
def test_errors_come_when_the_objective_is_built(build, message):
    with pytest.raises(UserError, match=message):
        build()


def test_a_missing_field_is_named():
    with pytest.raises(UserError, match="reads 'content'"):
        count(
            made({"a": Term(cross_entropy, gates=(worst_token,))}),
            {name: x for name, x in GIVEN.items() if name != "content"},
        )


def test_the_loop_says_each_complaint_once():
    said = []
    hook = say_once(said.append)
    _, tallies = count(made({"a": Term(cross_entropy, gates=(nothing,))}))
    for train_step in (10, 20):
        hook(Event("log", train_step, "imitate", None, 0, 0.0, jax.device_get(tallies)))
    hook(Event("end", 20, "imitate", None, 0, 0.0))
    assert said == ["train_step 10: no data: every gate of every term is closed, so nothing was learned"]
