"""The battery catches what it is there to catch: for every property a loss or gate that breaks it, and the words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixdistill import check
from mixdistill.check.battery import try_property
from mixdistill.check.bench import Bench
from mixdistill.check.properties import PROPERTIES
from mixdistill.check.traces import student
from mixdistill.gates import no_contradiction
from mixdistill.losses import cross_entropy, forward_kl
from mixdistill.objective import Objective, Term, sums_and_gradients
from mixdistill.signals.standard import STANDARD
from mixdistill.signals.steps import batch_wide, run_mean

pytest_plugins = ["mixdistill.check.fixture"]


def everything_closed(valid):
    return jnp.zeros_like(valid)


def negative(label_logprob):
    return label_logprob


def without_gradient(label_logprob):
    return jax.lax.stop_gradient(-label_logprob)


def infinite(label_logprob):
    return -label_logprob / jnp.where(label_logprob < -1, 0.0, 1.0)


def chaotic(label_logprob):
    return jnp.sin(1e6 * label_logprob)


def make_counting():
    calls = []

    def counting(label_logprob):
        calls.append(1)
        return -len(calls) * label_logprob

    return counting


def through_the_gate(trace_nll):
    return trace_nll


def trace_nll(label_logprob, valid, trace_run):
    return run_mean(-label_logprob, valid, trace_run)


def per_content_token(label_logprob, content, trace_run):
    share = run_mean(content, jnp.ones_like(content), trace_run)
    return -label_logprob / share


@jax.custom_vjp
def leak(x):
    return x


leak.defvjp(lambda x: (x, None), lambda _, cotangent: (cotangent + 1,))


def leaky(label_logprob):
    return leak(-label_logprob)


def through_a_signal(leaky):
    return leaky


def root(label_logprob):
    return jnp.sqrt(-label_logprob)


def over_the_row(label_logprob, valid):
    return -label_logprob * jnp.cumsum(valid, axis=1)


def by_column(label_logprob):
    return -label_logprob * jnp.arange(label_logprob.shape[1])


def by_row(label_logprob):
    return -label_logprob * jnp.arange(label_logprob.shape[0])[:, None]


def above_the_mean(label_logprob, valid):
    return label_logprob >= jnp.where(valid, label_logprob, 0).sum() / valid.sum()


def on_one_device(label_logprob):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return -jax.lax.with_sharding_constraint(label_logprob, here)


def narrow(label_logprob):
    return -label_logprob.astype(jnp.bfloat16)


def expensive(label_logprob):
    square = label_logprob[:, :, None] * label_logprob[:, None, :]
    return -label_logprob + 1e-9 * jax.lax.stop_gradient((square @ square)[:, :, 0])


def gated(gate):
    return Term(cross_entropy, gates=(gate,))


BY_NAME = {function.__name__.replace("_", " "): function for function in PROPERTIES}
BROKEN = [
    (gated, everything_closed, "keeps some tokens", "close every token"),
    (gated, negative, "gates are finite and not negative", "negative is NaN, infinite or negative at"),
    (Term, without_gradient, "loss has a finite gradient", "zero everywhere"),
    (Term, infinite, "loss has a finite gradient", "adds up to inf"),
    (Term, chaotic, "fused equals dense", "dense reference"),
    (Term, make_counting(), "jit equals eager", "compiled gives a loss sum of"),
    (
        Term,
        through_a_signal,
        "zero weights give zero gradient",
        "the gradient of embed is not exactly zero",
    ),
    (Term, through_the_gate, "closed tokens get no gradient", "a gradient reaches trace 0 token"),
    (Term, through_the_gate, "nan under a closed gate goes nowhere", "with NaN at trace 0 token"),
    (Term, per_content_token, "gradient is finite under any mask", "content False on trace"),
    (Term, root, "finite for a sure student", "where p(target) is exactly 1"),
    (Term, over_the_row, "packed equals unpacked", "in rows [[0]"),
    (Term, by_column, "padding changes nothing", "behind padding: trace"),
    (Term, by_row, "order of rows changes nothing", "in the order"),
    (gated, above_the_mean, "microbatches equal one batch", "4 microbatches"),
    (Term, on_one_device, "eight devices equal one", "raised ValueError"),
    (Term, narrow, "float32 for bfloat16", "narrow is bfloat16"),
    (Term, expensive, "costs like cross entropy", "at most 1.1"),
]


@pytest.mark.parametrize(("term", "broken", "name", "words"), BROKEN, ids=[f"{c[2]}-{c[1].__name__}" for c in BROKEN])
def test_catches(term, broken, name, words):
    objective = Objective({"checked": term(broken)}, signals=(*STANDARD, trace_nll, leaky))
    found = try_property(BY_NAME[name], Bench(objective, 8))
    assert found.passed is False, found
    assert words in found.detail


def test_every_property_is_broken_once():
    assert {case[2] for case in BROKEN} == set(BY_NAME)


def test_what_does_not_build_is_the_only_finding():
    def misspelt(label_logprb):
        return -label_logprb

    (finding,) = check.check_loss(misspelt)
    assert finding[:2] == ("builds", False)
    assert "did you mean 'label_logprob'" in finding.detail


def test_a_batch_wide_gate_is_excused_from_microbatches_and_says_so():
    @batch_wide
    def above_the_mean(label_logprob, valid):
        return label_logprob >= jnp.where(valid, label_logprob, 0).sum() / valid.sum()

    found = {finding.name: finding for finding in check.check_gate(above_the_mean, num_examples=2)}
    assert found["microbatches equal one batch"].passed is None
    assert "batch_wide" in found["microbatches equal one batch"].detail
    assert not [finding for finding in found.values() if finding.passed is False]


def test_the_bench_measures_what_a_train_step_would():
    bench = Bench(Objective({"a": Term(forward_kl), "b": Term(cross_entropy, coef=0.5)}), 0)
    context = {"train_step": 3, "memory": {}, "options": {"backward": "dense"}}
    total, (gradient,) = sums_and_gradients(bench.objective, student(), bench.params, bench.batch, **context)
    np.testing.assert_allclose(bench.base.loss, total.loss, rtol=1e-5)
    for name, leaf in bench.base.gradient.items():
        np.testing.assert_allclose(leaf, gradient[name], rtol=1e-4, atol=1e-5)


def test_fixtures_fail_with_the_words(check_loss, check_gate):
    check_gate(no_contradiction, num_examples=2)
    with pytest.raises(pytest.fail.Exception, match="narrow is bfloat16"):
        check_loss(narrow, num_examples=2)
