"""Faults of a run in its real code path: bad teachers, damaged and missing checkpoints, full disks, damaged records."""

import dataclasses
import errno
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixdistill.cli import main
from mixdistill.data.mixture import Mixture
from mixdistill.errors import UserError
from mixdistill.losses import cross_entropy
from mixdistill.objective import Objective, Term
from mixdistill.optimizers import OptimizerConfig
from mixdistill.recipe import Guard, Recipe, Stage, load
from mixdistill.signals.signal import use
from mixdistill.training import checkpoint as checkpoints
from mixdistill.training import loop
from mixdistill.training.checkpoint import FOLDER, saved_train_steps
from mixdistill.training.history import LEDGER, read_ledger
from mixdistill.training.hooks import METRICS_FILE, read_metrics
from mixdistill.training.loop import run

TOY = Path(__file__).parent / "toy_recipes.py"
B = 0  # teacher_id: teachers are B, F, H


def bad_teacher(label_logprob, teacher_id, train_step, *, start: int = 12, stop: int = 1000, what: float = 30.0):
    """Cross entropy, but what teacher B says becomes absurd (or NaN) from a train step on."""
    bad = (teacher_id == B) & (train_step >= start) & (train_step < stop)
    return jnp.where(bad, what, 1.0) * -label_logprob


def recipe(shards, loss=cross_entropy, steps=30, **changes) -> Recipe:
    source = Mixture(shards=str(shards.path if hasattr(shards, "path") else shards), rows=8, length=24)
    stage = Stage("pool", steps, source, Objective({"imitate": Term(loss)}))
    rules = Guard(warm_up=4, window=8, quarantine_after=2, rollback_after=4, max_skipped=40)
    made = {"guard": rules, "log_every": 1, "checkpoint_every": 4, "keep_checkpoints": 2} | changes
    return Recipe(name="trust", student=load(f"{TOY}:steered").student, stages=(stage,), **made)


def train(recipe, workdir, *hooks, **more):
    return run(recipe, workdir, hooks=hooks, devices=jax.devices()[:1], quiet=True, **more)


def ledger(workdir, event=None) -> list[dict]:
    return [line for line in read_ledger(workdir / LEDGER) if line.get("event") == event]


class Crash(Exception):
    pass


def crash(at: int):
    def hook(event) -> None:
        if event.kind == "train_step" and event.train_step == at:
            raise Crash

    return hook


@pytest.fixture(scope="module")
def poisoned(chain_shards, compiled, tmp_path_factory):
    """A run whose teacher B turns into NaN at train step 12, and its workdir."""
    loss = use(bad_teacher, what=float("nan"))
    made, workdir = recipe(chain_shards, loss), tmp_path_factory.mktemp("poisoned")
    return made, train(made, workdir), workdir


def test_a_teacher_that_turns_bad_is_named_quarantined_and_the_run_ends_well(poisoned, chain_shards):
    _, outcome, workdir = poisoned
    strikes = ledger(workdir, "nonfinite")
    # The train step that counts 13 as done is number 12: the first with a NaN, its traces named.
    assert [line["train_step"] for line in strikes][:2] == [13, 14]
    teachers = {chain_shards[trace].trace.teacher for line in strikes for trace in line["traces"]}
    assert teachers == {"B"}
    (closed,) = ledger(workdir, "quarantine")
    assert (closed["teacher"], closed["train_step"]) == ("B", 14)
    # Two batches are read ahead, and one is under way: after these B is gone.
    after = [line for line in ledger(workdir) if line["train_step"] > closed["train_step"] + 4]
    assert len(after) == 12
    assert {chain_shards[trace].trace.teacher for line in after for trace in line["traces"]} == {"F", "H"}
    assert not any(line["skipped"] for line in after)
    assert [line["skipped"] for line in ledger(workdir)][12:18] == [True] * 6
    assert outcome.stopped_by is None
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(outcome.state.params))


def test_an_update_that_is_not_finite_is_an_exact_no_op(poisoned, tmp_path):
    made, _, _ = poisoned
    seen = {}

    def hook(event) -> None:
        if event.kind == "train_step" and event.train_step in (12, 13):
            seen[event.train_step] = jax.device_get(event.state)

    with pytest.raises(Crash):
        train(made, tmp_path, hook, crash(14))
    jax.tree.map(np.testing.assert_array_equal, seen[12]._replace(train_step=13), seen[13])


def test_the_guard_decides_the_same_however_often_the_run_is_interrupted(poisoned, tmp_path):
    made, want, workdir = poisoned
    for at in (13, 15, 18, 22):
        with pytest.raises(Crash):
            train(made, tmp_path, crash(at))
    found = train(made, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, found.state, want.state)
    assert found.position.guard == want.position.guard
    assert list(read_ledger(tmp_path / LEDGER)) == list(read_ledger(workdir / LEDGER))


def test_which(poisoned, capsys):
    _, _, workdir = poisoned
    assert main(["which", str(workdir), "--step", "20", "--json"]) == 0
    (found,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (found["train_step"], found["stage"], found["became"]) == (20, "pool", "learned")
    trace = found["traces"][0]
    assert trace["teacher"] in ("F", "H")
    assert main(["which", str(workdir), "--trace", str(trace["trace"]), "--json"]) == 0
    steps = [json.loads(line)["train_step"] for line in capsys.readouterr().out.splitlines()]
    assert 20 in steps
    assert steps == [line["train_step"] for line in ledger(workdir) if trace["trace"] in line["traces"]]
    assert main(["which", str(workdir), "--decisions"]) == 0
    assert "quarantine teacher B" in capsys.readouterr().out
    assert main(["which", str(workdir), "--step", "99"]) == 1
    assert "it has 1 to 30" in capsys.readouterr().err
    assert main(["which", str(workdir / FOLDER), "--step", "1"]) == 2


def test_rollback_goes_to_the_last_good_checkpoint_and_skips_the_window(chain_shards, compiled, tmp_path, monkeypatch):
    """Everybody's gradient explodes in train steps 12 to 16: nobody to close, so the state goes back."""
    rules = Guard(warm_up=4, window=8, quarantine_after=0, rollback_after=4, max_skipped=40)
    made = recipe(chain_shards, exploding, guard=rules, optimizer=OptimizerConfig(learning_rate=1e-2, clip=1e9))
    good, restored, roll_back = {}, [], loop._roll_back

    def watched(*args):
        state = roll_back(*args)
        restored.append(jax.device_get(state.params))
        return state

    monkeypatch.setattr(loop, "_roll_back", watched)

    def hook(event) -> None:
        if event.kind == "train_step" and event.train_step == 12:
            good.update(jax.device_get(event.state.params))

    whole = train(made, tmp_path / "whole", hook)
    (back,) = ledger(tmp_path / "whole", "rollback")
    assert back["to"] == 12
    at = back["train_step"]
    assert at > 12
    lines = [line["train_step"] for line in ledger(tmp_path / "whole")]
    assert lines == list(range(1, 31))  # the data went on: nothing is read twice
    assert whole.position.guard["skipped"] == at - 12
    jax.tree.map(np.testing.assert_array_equal, restored[0], good)
    for where in (at, at + 3):
        with pytest.raises(Crash):
            train(made, tmp_path / "cut", crash(where))
    cut = train(made, tmp_path / "cut")
    jax.tree.map(np.testing.assert_array_equal, cut.state, whole.state)
    assert list(read_ledger(tmp_path / "cut" / LEDGER)) == list(read_ledger(tmp_path / "whole" / LEDGER))


def exploding(label_logprob, train_step):
    return -label_logprob * jnp.where((train_step >= 12) & (train_step < 17), 1000.0, 1.0)


def test_a_run_that_loses_too_much_stops_with_a_report_and_goes_on_when_forgiven(chain_shards, compiled, tmp_path):
    rules = Guard(warm_up=4, window=8, quarantine_after=0, rollback_after=0, max_skipped=3)
    made = recipe(chain_shards, all_nan, guard=rules, steps=14)
    outcome = train(made, tmp_path)
    assert outcome.stopped_by == "4 train steps were lost, more than guard.max_skipped=3"
    assert outcome.position.train_step < 14
    assert train(made, tmp_path).position.train_step == outcome.position.train_step  # it stays stopped
    outcome = train(made, tmp_path, forgive=("all",))
    assert (outcome.stopped_by, outcome.position.train_step) == (None, 14)


def all_nan(label_logprob, train_step):
    return jnp.where((train_step >= 4) & (train_step < 9), jnp.nan, 1.0) * -label_logprob


@pytest.fixture
def halfway(chain_shards, compiled, tmp_path):
    """A run that died after train step 13, with checkpoints of 8 and 12."""
    made = recipe(chain_shards, steps=16)
    with pytest.raises(Crash):
        train(made, tmp_path, crash(13))
    assert saved_train_steps(tmp_path) == [8, 12]
    return made, tmp_path


@pytest.fixture(scope="module")
def untouched(chain_shards, compiled, tmp_path_factory):
    return train(recipe(chain_shards, steps=16), tmp_path_factory.mktemp("untouched"))


def damage_largest(folder: Path) -> None:
    path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def damage_description(folder: Path) -> None:
    path = folder / "about" / "metadata"
    path.write_text(path.read_text().replace('"tokens": ', '"tokens": 1', 1))


@pytest.mark.parametrize(
    "how",
    [damage_largest, damage_description, lambda folder: shutil.rmtree(folder / "state")],
    ids=["bit", "description", "files gone"],
)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(how, halfway, untouched, capsys):
    made, workdir = halfway
    how(workdir / FOLDER / "12")
    assert main(["doctor", str(workdir)]) == 1
    assert "FAIL" in capsys.readouterr().out
    outcome = train(made, workdir)
    assert "checkpoint of train_step 12 is damaged" in capsys.readouterr().err
    assert (workdir / "damaged" / "12.0").is_dir()
    jax.tree.map(np.testing.assert_array_equal, outcome.state, untouched.state)
    assert main(["doctor", str(workdir)]) == 0


def test_doctor_repairs(halfway, capsys):
    _, workdir = halfway
    damage_largest(workdir / FOLDER / "12")
    (workdir / FOLDER / "14.orbax-checkpoint-tmp").mkdir()
    with (workdir / LEDGER).open("a") as file:
        file.write('{"train_st')
    assert main(["doctor", str(workdir), "--repair"]) == 0
    text = capsys.readouterr().out
    assert "would resume after train_step 8" in text
    assert not list((workdir / FOLDER).glob("*tmp*"))
    assert main(["doctor", str(workdir)]) == 0


def test_where_all_are_damaged_the_run_refuses_and_deletes_nothing(halfway):
    made, workdir = halfway
    for step in (8, 12):
        damage_largest(workdir / FOLDER / str(step))
    with pytest.raises(UserError, match=r"all 2 checkpoints .* are damaged"):
        train(made, workdir)
    assert len(list((workdir / "damaged").iterdir())) == 2


def test_a_checkpoint_for_which_there_is_no_room_is_not_begun(chain_shards, untouched, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    free = iter([usage.free, 100, 100])
    made = recipe(chain_shards, steps=16)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: usage._replace(free=next(free, usage.free)))
    outcome = train(made, tmp_path)
    assert [line["train_step"] for line in ledger(tmp_path, "not saved")] == [8, 12]
    assert saved_train_steps(tmp_path) == [4, 16]
    jax.tree.map(np.testing.assert_array_equal, outcome.state.params, untouched.state.params)


def test_a_disk_that_is_full_ends_the_run_in_words(chain_shards, compiled, tmp_path):
    def full(event) -> None:
        if event.kind == "train_step" and event.train_step == 6:
            raise OSError(errno.ENOSPC, "No space left on device")

    made = recipe(chain_shards, steps=16)
    with pytest.raises(UserError, match=r"disk of .* is full"):
        train(made, tmp_path, full)
    assert saved_train_steps(tmp_path) == [4]


def test_a_state_that_is_not_finite_is_not_saved_and_the_run_goes_back(chain_shards, compiled, tmp_path, monkeypatch):
    real, asked = loop.soundness, []

    def once(state):
        found = real(state)
        asked.append(int(state.train_step))
        return found._replace(finite=asked[-1] != 8)

    monkeypatch.setattr(loop, "soundness", once)
    outcome = train(recipe(chain_shards, steps=16), tmp_path)
    assert [(line["train_step"], line["to"]) for line in ledger(tmp_path, "rollback")] == [(8, 4)]
    assert saved_train_steps(tmp_path)[-1] == 16
    assert outcome.position.guard["good"] == 16


def test_the_good_checkpoint_outlives_retention(chain_shards, compiled, tmp_path):
    """Strikes that never end: the last calm checkpoint stays while newer ones come and go."""
    rules = Guard(warm_up=4, window=8, quarantine_after=0, rollback_after=0, max_skipped=1000)
    train(recipe(chain_shards, forever_nan, guard=rules, keep_checkpoints=1), tmp_path)
    assert saved_train_steps(tmp_path) == [12, 30]


def forever_nan(label_logprob, train_step):
    return jnp.where(train_step >= 12, jnp.nan, 1.0) * -label_logprob


def test_damaged_records_are_left_out_counted_and_named(chain_shards, compiled, tmp_path, capsys):
    shards = shutil.copytree(chain_shards.path, tmp_path / "shards")
    (path,) = shards.glob("*.array_record")
    data = bytearray(path.read_bytes())
    for place in range(500, 9000, 1500):  # each in another record
        data[place] ^= 1
    path.write_bytes(data)
    made = recipe(shards, guard=Guard(max_damaged=0.5))
    outcome = train(made, tmp_path / "work")
    assert outcome.stopped_by is None
    said = capsys.readouterr().err
    assert "cannot be read" in said
    found = ledger(tmp_path / "work", "damaged")
    assert found
    lost = set(found[-1]["traces"])
    assert all(f"trace {trace} " in said for trace in lost)
    last = read_metrics(tmp_path / "work" / METRICS_FILE)[-1]
    assert last["tokens"] == outcome.position.tokens
    assert main(["doctor", str(shards)]) == 1
    assert f"cannot be read: {min(lost)}" in capsys.readouterr().out

    strict = dataclasses.replace(made.stages[0], source=dataclasses.replace(made.stages[0].source, damaged="strict"))
    with pytest.raises(UserError, match="was changed"):
        train(dataclasses.replace(made, stages=(strict,)), tmp_path / "strict")
    assert not (tmp_path / "strict").exists()


def test_where_no_record_can_be_read_the_run_ends_and_names_the_files(chain_shards, compiled, tmp_path):
    shards = shutil.copytree(chain_shards.path, tmp_path / "shards")
    (path,) = shards.glob("*.array_record")
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))
    with pytest.raises(UserError, match=rf"none of \d+ records could be read.*{path.name}.*prepare them again"):
        train(recipe(shards, guard=Guard(max_damaged=0.99)), tmp_path / "work")
