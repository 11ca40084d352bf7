"""Admission on the chain world: which teachers conflict, which are chosen, and what becomes of the recipe."""

import contextlib
import dataclasses
import math

import jax
import numpy as np
import pytest

from mixdistill.data.mixture import Mixture
from mixdistill.diagnostics.conflict import count_continuations, worst_contexts
from mixdistill.diagnostics.content import completions, content_traces, sample_traces
from mixdistill.diagnostics.undecidable import Undecidable
from mixdistill.errors import UserError
from mixdistill.losses import cross_entropy
from mixdistill.objective import Objective, Term
from mixdistill.recipe import Recipe, Stage, show
from mixdistill.recipe.parameters import Compatible
from mixdistill.students.families import chain
from mixdistill.traces.worlds.chain import CHAIN
from mixdistill.traces.worlds.write import write_world
from mixdistill.training.admission import admit, admit_around, admitted, cost, only, reason
from mixdistill.training.history import read_ledger
from mixdistill.training.hooks import read_metrics
from mixdistill.training.job import build
from mixdistill.training.loop import run

COVERAGE = {"F": (3, 4), "H": (4, 5), "B": (4, 5), "M": (4, 5), "S": (3, 4, 5)}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    out = tmp_path_factory.mktemp("chain") / "shards"
    return write_world(CHAIN, out, dict.fromkeys(COVERAGE, 1000), seed=31, coverage=COVERAGE)


@pytest.fixture(scope="module")
def admission(shards):
    return admit(shards, [problem.prompt for problem in CHAIN.problems(0, "validation", 60)])


def recipe(shards, **budget):
    source = Mixture(shards=str(shards.path), rows=16, length=32)
    objective = Objective({"imitate": Term(cross_entropy)})
    budget = budget or {"num_tokens": 10_000}
    stage = Stage("imitate", budget.get("num_train_steps"), source, objective, num_tokens=budget.get("num_tokens"))
    return Recipe(name="mixed", student=chain(CHAIN.tokenizer().vocab_size), stages=(stage,))


def test_opposite_orders_conflict_and_hedging_does_not(admission):
    between = admission.conflict.between
    assert between("F", "B") >= 4 * between("F", "H")
    harmful = [between(a, b) for a in "FH" for b in "BMS"]
    assert min(harmful) > admission.threshold > between("F", "H")


def test_the_group_covers_what_is_asked_and_has_no_conflict(admission):
    assert admission.teachers == ("F", "H")
    assert admission.apart == ("B", "M", "S")
    assert admission.groups[0].coverage == 1.0
    assert admission.tokens == 0


def test_coverage_follows_the_prompts(shards):
    short = admit(shards, [problem.prompt for problem in CHAIN.problems(0, "validation", 20, sizes=(3,))])
    assert short.groups[0].coverage == 1.0
    assert short.teachers == ("F", "H")
    assert all(group.coverage in (0.0, 1.0) for group in short.groups)


def test_the_reason_names_the_teachers_and_the_numbers(admission):
    text = reason(admission)
    assert "B, M and S" in text
    for a, b in (("F", "B"), ("H", "B")):
        if admission.conflict.between(a, b) >= admission.conflict.between("F" if a == "H" else "H", b):
            assert f"{a}-{b} {admission.conflict.between(a, b):.2f}" in text
    assert f"{admission.conflict.between('F', 'H'):.2f} bits" in text


def test_the_worst_contexts_read_as_text(shards):
    counts = count_continuations(content_traces(shards, 1000))
    clashes = worst_contexts(counts, "F", "B", limit=3)
    assert [clash.share for clash in clashes] == sorted((clash.share for clash in clashes), reverse=True)
    for clash in clashes:
        assert all(word in "0123456789" for word in shards.tokenizer.decode(clash.context).split())
        assert clash.after[0][0][0] != clash.after[1][0][0]


def test_the_recipe_mixes_the_group_and_checks_the_frontier(shards, admission):
    (stage,) = admitted(recipe(shards), admission).stages
    assert stage.source.teachers == ("F", "H")
    assert stage.source.weights is None
    text = show(admitted(recipe(shards), admission))
    assert "frontier" in text
    assert "check_at = 3000" in text
    value = stage.objective.memory["frontier"].init(5)
    shares = np.asarray(value["weights"])
    index = shards.index
    tokens = [int((index["num_tokens"] - index["num_prompt"])[index["teacher_id"] == k].sum()) for k in range(5)]
    expected = np.array([n if name in "FH" else 0 for n, name in zip(tokens, shards.teachers, strict=True)])
    np.testing.assert_allclose(shares, expected / expected.sum(), rtol=1e-6)


def test_tokens_of_the_anchor_count(shards, admission):
    spent = dataclasses.replace(admission, tokens=4_000)
    assert admitted(recipe(shards), spent).stages[0].num_tokens == 6_000
    assert "check_at = 1800" in show(admitted(recipe(shards), spent))
    with pytest.raises(UserError, match="larger budget"):
        admitted(recipe(shards), dataclasses.replace(admission, tokens=10_000))
    with pytest.raises(UserError, match="in tokens"):
        admitted(recipe(shards, num_train_steps=5), spent)


def test_around_an_anchor(shards, tmp_path):
    found = admit_around(recipe(shards), tmp_path / "anchor", "F", num_tokens=2_000)
    assert found.anchor == "F"
    assert "F" in found.teachers
    assert found.tokens >= 2_000
    assert math.isfinite(found.anchor_nll)
    assert set(found.disagreement) == {"B", "H", "M", "S"}
    for name, row in found.disagreement.items():
        assert isinstance(row, Undecidable)
        assert row.num_tokens > 0
        assert (name in found.teachers) == (row.conflicts() is False)
    assert admitted(recipe(shards), found).stages[0].num_tokens == 10_000 - found.tokens
    assert "undecidable" in reason(found) or not found.apart
    with pytest.raises(UserError, match="unknown anchor"):
        admit_around(recipe(shards), tmp_path / "other", "Q", num_tokens=10)


def test_only_one_teacher(shards):
    stage = only(recipe(shards, num_train_steps=7), "B", 500).stages[0]
    assert (stage.source.teachers, stage.num_tokens, stage.num_train_steps) == (("B",), 500, None)


def test_completions_are_those_of_the_shards(shards):
    numbers = sample_traces(shards, 4, seed=1)["H"]
    assert len(numbers) == len(set(numbers.tolist())) == 4
    found = completions(shards, numbers)
    for n, number in enumerate(numbers):
        trace = shards[int(number)]
        assert trace.trace.teacher == "H"
        np.testing.assert_array_equal(found.token[found.trace == n], trace.tokens[trace.num_prompt :])
    words = [shards.tokenizer.inner.id_to_token(int(token)) for token in found.token]
    assert [word.isdigit() for word in words] == found.content.tolist()


def test_a_recipe_admits_its_teachers_before_the_first_train_step(shards, admission, tmp_path):
    """Decided once, counted and told; whoever is kept apart is in no stage."""
    plain = recipe(shards, num_train_steps=2)
    stage = dataclasses.replace(plain.stages[0], source=dataclasses.replace(plain.stages[0].source, rows=4))
    both = (stage, dataclasses.replace(stage, name="again", objective=None))
    prompts = tuple(problem.prompt for problem in CHAIN.problems(0, "validation", 60))
    student = dataclasses.replace(plain.student, layers=1, unroll=1)
    settings = {"student": student, "stages": both, "log_every": 1, "checkpoint_every": 3}
    mixed = dataclasses.replace(plain, admission=Compatible(prompts=prompts, num_traces=300), **settings)

    def killed(event):
        if event.kind == "train_step" and event.train_step == 2:
            raise KeyboardInterrupt

    for hooks in ([killed], []):  # before there is a checkpoint: it is decided once more, and told once
        with contextlib.suppress(KeyboardInterrupt):
            run(mixed, tmp_path / "run", hooks=hooks, devices=jax.devices()[:1], quiet=True)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    taught = [{name for name, count in line["weights"]["teacher/tokens"].items() if count} for line in lines]
    assert len(taught) == 4
    assert set().union(*taught) == set(admission.teachers) == {"F", "H"}
    (said,) = [line for line in read_ledger(tmp_path / "run" / "ledger.jsonl") if line.get("event") == "admission"]
    assert (said["together"], said["apart"]) == (["F", "H"], ["B", "M", "S"])
    assert said["cpu_seconds"] > 0
    mean = shards.index["num_tokens"].mean()
    assert said["read"] == pytest.approx(300 * len(COVERAGE) * mean, rel=0.05)
    assert "admission.num_traces = 300" in show(mixed)


def test_a_stage_that_admission_leaves_without_teachers_is_named(shards):
    alone = dataclasses.replace(recipe(shards, num_train_steps=1).stages[0], name="alone")
    alone = dataclasses.replace(alone, source=dataclasses.replace(alone.source, weights={"B": 1.0}))
    everybody = recipe(shards, num_train_steps=1)
    mixed = dataclasses.replace(everybody, stages=(*everybody.stages, alone), admission=Compatible(num_traces=300))
    with pytest.raises(UserError, match=r"'alone'.*F and H are compatible"):
        build(mixed, jax.devices()[:1])


def test_what_admission_read_and_took(admission, shards):
    assert admission.read == int(shards.index["num_tokens"].sum())  # 1000 traces of each are all there are
    assert admission.cpu_seconds > 0
    assert cost(admission).startswith(f"{admission.read:,} tokens of traces read in ")
