"""Recipes: what they refuse, their text and identity, typed changes, what can be read back."""

import dataclasses
import functools
import json
import subprocess
import sys

import jax.numpy as jnp
import pytest

from experiments.base import anchored, smoke
from mixdistill.data.mixture import Mixture
from mixdistill.errors import UserError
from mixdistill.gates import worst_token
from mixdistill.losses import cross_entropy
from mixdistill.objective import Objective, Term
from mixdistill.optimizers import Budget
from mixdistill.recipe import Recipe, Stage, diff, fingerprint, load, set_all, set_path, show
from mixdistill.recipe.read import read_student, read_value
from mixdistill.signals.signal import use
from mixdistill.students.config import RopeScaling

SOURCE = Mixture(shards="shards", rows=8, length=64)
IMITATE = Objective({"imitate": Term(cross_entropy)})


def stage(name="one", num_train_steps=3, objective=IMITATE, **more):
    return Stage(name, num_train_steps, SOURCE, objective, **more)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: stage(num_tokens=5), "'one' needs either num_train_steps or num_tokens"),
        (lambda: stage(num_train_steps=None), "'one' needs either num_train_steps or num_tokens"),
        (lambda: stage(num_train_steps=0), "'one' has 0 train_steps"),
        (lambda: dataclasses.replace(smoke(), stages=()), "has no stages"),
        (lambda: dataclasses.replace(smoke(), stages=(stage(objective=None),)), "is the first and needs an objective"),
        (lambda: dataclasses.replace(smoke(), stages=(stage(), stage())), "two stages of one name: one, one"),
        (
            lambda: dataclasses.replace(smoke(), stages=(stage(), stage("two", None, num_tokens=9))),
            "mix num_train_steps and num_tokens",
        ),
        (lambda: dataclasses.replace(smoke(), num_microbatches=3), "8 rows a train step, which 3 microbatches"),
        (lambda: dataclasses.replace(smoke(), log_every=0), "log_every is 0"),
    ],
)
def test_what_does_not_fit_is_refused_when_it_is_built(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_stages_add_up_and_inherit_their_objective():
    recipe = dataclasses.replace(smoke(), stages=(stage(), stage("two", 4, None), stage("three", 5)))
    assert recipe.budget == Budget(12, "train_steps")
    assert recipe.objective_of(1) is IMITATE


def test_the_text_has_one_line_for_every_setting_that_set_takes():
    recipe = anchored()
    lines = dict(line.split(" = ", 1) for line in show(recipe).splitlines())
    assert lines["stages.1.objective.terms.imitate.gates.worst_token.threshold"] == "3.0"
    assert lines["stages.0.source.weights.anchor"] == "1.0"
    for path in ("optimizer.clip", "student.mlp", "stages.1.source.rows", "seed", "stages.0.num_train_steps"):
        assert show(set_path(recipe, path, lines[path])) == show(recipe)


def test_identity_leaves_out_machine_and_logging_and_nothing_else():
    recipe = smoke()
    same = set_all(
        recipe, ["mesh.fsdp=1", "num_microbatches=2", "log_every=1", "checkpoint_every=3", "rules.axes.mlp=tensor"]
    )
    assert fingerprint(same) == fingerprint(recipe)
    assert show(same) != show(recipe)
    for change in ("seed=1", "optimizer.b1=0.8", "student.mlp=64", "stages.0.source.seed=3", "name=other"):
        assert fingerprint(set_all(recipe, [change])) != fingerprint(recipe), change


def test_identity_is_the_same_in_another_process():
    code = "from mixdistill.recipe import *; print(fingerprint(load('experiments.base:anchored')))"
    # A random hash seed would show any order that comes from a set.
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == fingerprint(anchored())


def test_a_lambda_is_told_from_another_by_its_code():
    def with_coef(coef):
        objective = Objective({"imitate": Term(cross_entropy, coef=coef)})
        return dataclasses.replace(smoke(), stages=(stage(objective=objective),))

    assert fingerprint(with_coef(lambda t: 1.0 + t)) == fingerprint(with_coef(lambda t: 1.0 + t))
    assert fingerprint(with_coef(lambda t: 1.0 + t)) != fingerprint(with_coef(lambda t: 2.0 + t))


def held(value):
    def schedule(train_step):
        return value * train_step

    return schedule


def test_what_a_closure_or_a_partial_holds_is_part_of_the_text():
    def scaled(train_step, *, by):
        return by * train_step

    for make in (held, lambda by: functools.partial(scaled, by=by)):
        terms = [Objective({"imitate": Term(cross_entropy, coef=make(v))}) for v in (1.0, 2.0)]
        one, two = (dataclasses.replace(smoke(), stages=(stage(objective=o),)) for o in terms)
        assert "1.0 -> 2.0" in diff(one, two)
        assert fingerprint(one) != fingerprint(two)


def test_diff_names_what_differs_and_what_is_missing():
    changed = set_all(smoke(), ["seed=4", "stages.0.source.weights.ann=2"])
    assert diff(smoke(), changed).splitlines() == [
        "stages.0.source.weights: None -> (absent)",
        "seed: 0 -> 4",
        "stages.0.source.weights.ann: (absent) -> 2.0",
    ]
    assert diff(smoke(), smoke()) == ""


def test_a_value_without_a_text_form_is_refused():
    with pytest.raises(UserError, match="is an object of object, which has no text form"):
        show(dataclasses.replace(smoke(), name=object()))


@pytest.mark.parametrize(
    ("change", "path", "value"),
    [
        ("optimizer.learning_rate=1e-4", lambda r: r.optimizer.learning_rate, 1e-4),
        ("optimizer.clip=none", lambda r: r.optimizer.clip, None),
        ("optimizer.clip=2", lambda r: r.optimizer.clip, 2.0),
        ("student.tied=true", lambda r: r.student.tied, True),
        ("stages.0.source.unit=traces", lambda r: r.stages[0].source.unit, "traces"),
        ("stages.0.source.folds=a,b", lambda r: r.stages[0].source.folds, ("a", "b")),
        ("stages.0.source.shards=one,two", lambda r: r.stages[0].source.shards, ("one", "two")),
        ("stages.0.source.shards=one", lambda r: r.stages[0].source.shards, "one"),
        ("stages.1.source.weights.ann=2", lambda r: r.stages[1].source.weights, {"ann": 2.0}),
        (
            "stages.0.source.weights={'ann': 1, 'bob': 3}",
            lambda r: r.stages[0].source.weights,
            {"ann": 1.0, "bob": 3.0},
        ),
        ("stages.1.objective.memory.refill.every=20", lambda r: r.stages[1].objective.memory["refill"].every, 20),
        ("mesh.data=2", lambda r: r.mesh, {"fsdp": -1, "data": 2}),
        ("tokenizer=none", lambda r: r.tokenizer, None),
        ("name='5'", lambda r: r.name, "5"),
        ("stages.0.objective.terms.imitate.coef=0.5", lambda r: r.stages[0].objective.terms["imitate"].coef, 0.5),
    ],
)
def test_set_reads_text_by_the_declared_type(change, path, value):
    found = path(set_all(anchored(), [change]))
    assert found == value
    assert type(found) is type(value)


def test_set_turns_knobs_of_gates_and_leaves_the_rest():
    path = "stages.1.objective.terms.imitate.gates.worst_token.threshold"
    gate = set_path(anchored(), path, "2").stages[1].objective.terms["imitate"].bound_gates[0]
    assert (gate.fn, gate.knobs) == (worst_token, {"threshold": 2.0})
    twice = set_path(set_path(anchored(), path, "2"), path, "5")
    assert twice.stages[1].objective.terms["imitate"].bound_gates[0] == use(worst_token, threshold=5.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optimizer.learning_rat=1", "'learning_rat'; did you mean 'learning_rate'"),
        ("stages.0.sorce.rows=1", "'sorce'; did you mean 'source'"),
        ("stages.4.name=x", "'4'; known: 0, 1"),
        ("stages.1.objective.terms.imitate.gates.worst_tokn.threshold=1", "did you mean 'worst_token'"),
        ("stages.1.objective.terms.imitate.gates.worst_token.treshold=1", "did you mean 'threshold'"),
        ("optimizer.learning_rate=fast", "cannot be 'fast': it is declared as float and is now 0.003"),
        ("student.layers=1.5", "student.layers cannot be '1.5'"),
        ("student.mlp_kind=relo", r"cannot be 'relo'.*known: swiglu, geglu, gelu, relu"),
        ("student.tied=yes", r"cannot be 'yes'.*known: true, false"),
        ("stages.0.source.rows=0", "mixture rows is 0; it is at least 1"),
        ("seed.x=1", "has no setting 'x' inside it"),
        ("stages.1.objective.memory.refill.init.finish.floor=1", "init has no settings; change what made it"),
        ("stages.0.objective.terms.imitate.loss=mse", "it is code, not a value"),
        ("seed", "--set takes path=value, got 'seed'"),
    ],
)
def test_set_says_what_is_wrong_and_names_the_nearest(change, message):
    with pytest.raises(UserError, match=message):
        set_all(anchored(), [change])


def test_load_from_a_file(tmp_path):
    path = tmp_path / "my_recipes.py"
    path.write_text("from experiments.base import smoke\ndef mine():\n    return smoke('there')\nnumber = 3\n")
    assert show(load(f"{path}:mine")) == show(smoke("there"))
    with pytest.raises(UserError, match=r"'mein'; did you mean 'mine'\? known: mine$"):
        load(f"{path}:mein")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smoke", "a recipe is named module:function"),
        ("nowhere.py:f", "no recipe file nowhere.py"),
        ("experiments.basis:smoke", "no module 'experiments.basis'"),
        ("experiments.base:smok", "did you mean 'smoke'"),
        ("experiments.base:Mixture", "needs shards, rows, length; name a recipe function"),
    ],
)
def test_load_says_what_is_missing(name, message):
    with pytest.raises(UserError, match=message):
        load(name)


def test_a_decoder_is_read_back_without_importing_what_the_text_names(monkeypatch):
    config = dataclasses.replace(smoke().student, soft_cap=30.0, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192))
    text = show(dataclasses.replace(smoke(), student=config))
    assert read_student(text) == config
    assert read_value(text, "stages.0.source.shards") == "shards"
    assert read_value(text, "stages.9.source.shards") is None
    monkeypatch.setattr("importlib.import_module", None)  # would fail if anything were imported
    assert read_student(text.replace("mixdistill.students.config:DecoderConfig", "evil:f")) is None


def test_a_text_of_another_version_says_so():
    text = "\n".join(line for line in show(smoke()).splitlines() if not line.startswith("student.mlp_kind"))
    with pytest.raises(UserError, match="of another version: its student differs in mlp_kind"):
        read_student(text)


def test_a_student_made_by_a_function_appears_by_name():
    recipe = dataclasses.replace(smoke(), student=_made)
    assert "student = test_recipe:_made" in show(recipe).replace("tests.unit.", "")
    assert read_student(show(recipe)) is None
    assert json.dumps(show(recipe))


def _made():
    return jnp


def test_recipe_must_be_what_the_function_returns(tmp_path):
    path = tmp_path / "other_recipes.py"
    path.write_text("def nothing():\n    return 3\n")
    with pytest.raises(UserError, match="returned int, not a Recipe"):
        load(f"{path}:nothing")
    assert isinstance(smoke(), Recipe)
