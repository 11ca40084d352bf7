"""train, eval, sample, show, explain, doctor from end to end; all kinds of bad input: one line, nothing written."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from mixdistill.cli import main
from mixdistill.traces.prepare import prepare_traces
from mixdistill.traces.tokenizer import word_level
from mixdistill.traces.trace import Trace
from mixdistill.traces.worlds.chain import CHAIN
from mixdistill.traces.worlds.write import write_world
from mixdistill.training.hooks import read_metrics

TOY = Path(__file__).parents[1] / "resume" / "toy_recipes.py"
SMALL = ["vocab_size=32", "embed=16", "layers=1", "heads=2", "kv_heads=1", "head_dim=8", "mlp=32"]
SETTINGS = [f"--set=student.{size}" for size in SMALL] + ["--set=mesh.fsdp=1", "--set=mesh.data=-1"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Fold "train" of three teachers; of fold "test" only teacher S has traces besides F."""
    folder = tmp_path_factory.mktemp("data") / "shards"
    names = [("train", "F"), ("train", "B"), ("train", "H"), ("test", "F"), ("test", "S")]
    traces = [CHAIN.trace(p, teacher) for split, teacher in names for p in CHAIN.problems(0, split, 30, stream=teacher)]
    prepare_traces(traces, folder, tokenizer=CHAIN.tokenizer())
    return folder


@pytest.fixture(scope="module")
def workdir(shards, tmp_path_factory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    changes = [f"--set=stages.0.source.shards={shards}", "--set=stages.0.source.folds=train"]
    assert main(["train", "experiments.base:smoke", "--workdir", str(folder), *SETTINGS, *changes]) == 0
    return folder


def train(shards, workdir, *changes, recipe="experiments.base:smoke") -> int:
    sets = [f"--set={change}" for change in (f"stages.0.source.shards={shards}", *changes)]
    return main(["train", recipe, "--workdir", str(workdir), *SETTINGS, *sets])


def test_a_run_leaves_a_workdir_that_says_what_it_is(workdir):
    assert {path.name for path in workdir.iterdir()} == {
        "recipe.txt",
        "tokenizer",
        "checkpoints",
        "metrics.jsonl",
        "ledger.jsonl",
        "tensorboard",
    }
    assert sorted(int(path.name) for path in (workdir / "checkpoints").iterdir()) == [10, 20]
    lines = read_metrics(workdir / "metrics.jsonl")
    assert [line["train_step"] for line in lines] == [5, 10, 15, 20]
    assert lines[-1]["metrics"]["loss"] < lines[0]["metrics"]["loss"]
    assert set(lines[0]["metrics"]["teacher/nll"]) == {"B", "F", "H", "S"}
    assert lines[0]["metrics"]["teacher/nll"]["S"] is None  # in the shards, but not in this fold
    assert "student.embed = 16" in (workdir / "recipe.txt").read_text()


def test_training_again_says_that_it_is_finished(workdir, shards, capsys):
    assert train(shards, workdir, "stages.0.source.folds=train") == 0
    assert capsys.readouterr().out.startswith("finished: 20 train steps, ")


def test_eval_on_the_folds_that_were_not_trained_on(workdir, tmp_path, capsys):
    out = tmp_path / "eval.json"
    assert main(["eval", str(workdir), "--max-new", "20", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "shards/test: 60 problems, greedy" in text
    found = json.loads(out.read_text())
    assert found["folds"] == ["test"]
    assert found["train_step"] == 20
    assert found["held_out"]["B"] == {"nll": None, "content_nll": None, "tokens": 0}
    assert 1 < found["held_out"]["S"]["nll"] < 5
    assert found["answers"]["num_problems"] == 60
    assert 0 <= found["answers"]["accuracy"]["low"] <= found["answers"]["accuracy"]["high"] < 1
    assert set(found["answers"]["by_difficulty"]) == {"3", "4", "5"}


def test_eval_on_a_world_and_of_an_earlier_checkpoint(workdir, tmp_path):
    out = tmp_path / "eval.json"
    command = ["eval", str(workdir), "--world", "chain", "--count", "8", "--max-new", "20", "--train-step", "10"]
    assert main([*command, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert (found["train_step"], found["answers"]["task"], found["answers"]["num_problems"]) == (10, "chain/test", 8)
    assert set(found["answers"]["errors"]) <= {*CHAIN.errors, "unfinished"}


def test_sample(workdir, capsys, monkeypatch):
    command = ["sample", str(workdir), "--max-new", "5"]
    assert main([*command, "--prompt", "? 1 2 3 :", "--prompt", "? 4 5 6 :"]) == 0
    first = capsys.readouterr().out
    assert len(first.splitlines()) == 3
    monkeypatch.setattr("sys.stdin", iter(["? 1 2 3 :\n", "? 4 5 6 :\n"]))
    assert main(command) == 0
    assert capsys.readouterr().out == first
    drawn = []
    for seed in ("1", "1", "2"):
        assert main([*command, "--prompt", "? 1 2 3 :", "--temperature", "2", "--num", "3", "--seed", seed]) == 0
        drawn.append(capsys.readouterr().out)
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0].splitlines()) == 3
    assert main([*command, "--prompt", "? 1 2 3 :", "--temperature", "2", "--num", "3", "--top-k", "1"]) == 0
    assert set(capsys.readouterr().out.splitlines()) == {first.splitlines()[0]}


def test_sample_votes(workdir, capsys):
    command = ["sample", str(workdir), "--max-new", "5", "--prompt", "? 1 2 3 :", "--prompt", "? 4 5 6 :"]
    limits = ["--temperature", "2", "--vote", "12", "--warmup", "4", "--window", "2", "--keep", "50"]
    assert main([*command, *limits]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for line in lines:  # all 12 where they do not agree
        found = re.search(
            r" votes, (4|12) completions, (\d+) stopped early; ([\d,]+) tokens, about ([\d,]+) saved\)$", line
        )
        assert found, line
        assert int(found[4]) > 0 or found[1] == "12"
        assert int(found[3]) <= int(found[1]) * 5


def test_show_and_explain_need_no_shards(capsys):
    assert main(["show", "experiments.base:smoke", "--set", "seed=4"]) == 0
    assert "\nseed = 4\n" in capsys.readouterr().out
    assert main(["show", "experiments.base:smoke", "--set", "seed=4", "--diff", "experiments.base:smoke"]) == 0
    assert capsys.readouterr().out == "seed: 4 -> 0\n"
    assert main(["explain", "experiments.base:anchored"]) == 0
    text = capsys.readouterr().out
    assert "worst_token reads worst_surprisal" in text
    assert "stage pool: 400 train steps" in text


def test_doctor(workdir, shards, tmp_path, capsys):
    assert main(["doctor", str(shards), str(workdir)]) == 0
    text = capsys.readouterr().out
    assert f"ok    {shards}: 150 traces of 4 teachers" in text
    assert all(f"ok    {workdir} checkpoint {step}: every array has its checksum" in text for step in (10, 20))
    assert f"ok    {workdir}: training would resume after train_step 20" in text
    assert main(["doctor", str(tmp_path)]) == 1
    assert "FAIL" in capsys.readouterr().out
    damaged = shutil.copytree(shards, tmp_path / "damaged")
    (damaged / "index.npz").write_bytes(b"")
    assert main(["doctor", str(damaged)]) == 1


MISSPELT = """
from experiments.base import smoke
from mixdistill.losses import cross_entropy
from mixdistill.objective import Objective, Term

def gate(worst_suprisal):
    return worst_suprisal < 3.0

def misspelt():
    Objective({"imitate": Term(cross_entropy, gates=(gate,))})
"""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["stages.0.source.shards=nowhere"], "no shards at nowhere: no such folder"),
        (["stages.0.source.weights.S=1", "stages.0.source.folds=train"], "'S' has weight 1.0 but no trace to train on"),
        (["stages.0.source.teachers=S", "stages.0.source.folds=train"], "no trace is left to train on"),
        (["stages.0.source.teachers=F,S", "stages.0.source.folds=train"], "wants teacher 'S', who has no trace"),
        (["stages.0.source.weights.Q=1"], "unknown teacher 'Q'"),
        (["stages.0.source.folds=trian"], "'trian'; did you mean 'train'"),
        (["stages.0.source.length=4"], "no trace is left to train on"),
        (["tokenizer=other.json"], "were made with tokenizer"),
        (["tokenizer=nowhere.json"], "no tokenizer at nowhere.json"),
        (["student.vocab_size=20"], "the student has a vocabulary of 20"),
        (["mesh.data=3"], "mesh fsdp=1 x data=3 does not fit: there are 8 cpu devices"),
        (["mesh.fspd=1"], "unknown mesh axis 'fspd'; did you mean 'fsdp'"),
        (["stages.0.source.rows=12"], "12 rows a train step do not divide over 8"),
        (["mesh.data=1", "mesh.fsdp=8", "student.embed=20"], "axis 'embed' has size 20, which 8 devices"),
        (["optimizer.frozen=embd/*"], "unknown parameter path to freeze"),
        (["optimizer.learning_rte=1"], "did you mean 'learning_rate'"),
        (["stages.0.source.rows=many"], "cannot be 'many'"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(changes, message, shards, tmp_path, monkeypatch, capsys):
    assert_refused(message, tmp_path, monkeypatch, capsys, lambda: train(shards, "run", *changes))


def test_a_misspelt_signal_is_one_line(shards, tmp_path, monkeypatch, capsys):
    (tmp_path / "misspelt_recipes.py").write_text(MISSPELT)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    message = "gate reads 'worst_suprisal'; did you mean 'worst_surprisal'"
    command = lambda: train(shards, "run", recipe=f"{tmp_path}/misspelt_recipes.py:misspelt")  # noqa: E731
    assert_refused(message, tmp_path, monkeypatch, capsys, command)


def test_a_manifest_that_is_none_is_one_line(shards, tmp_path, monkeypatch, capsys):
    broken = shutil.copytree(shards, tmp_path / "broken")
    (broken / "manifest.json").write_text("{")
    assert_refused("is not a manifest", tmp_path, monkeypatch, capsys, lambda: train(broken, "run"))


@pytest.mark.parametrize("where", ["file/run", "file"])
def test_an_unwritable_workdir_is_one_line(where, shards, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    assert_refused("cannot be written", tmp_path, monkeypatch, capsys, lambda: train(shards, where))


def assert_refused(message, folder, monkeypatch, capsys, command) -> None:
    """Exit code 2, one line on stderr, nothing on stdout, and no file is made or changed in `folder`."""
    monkeypatch.chdir(folder)
    word_level(["a"]).save(folder / "other.json")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    capsys.readouterr()
    assert command() == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("mixdistill train: ")
    assert error.count("\n") == 1
    assert message in error
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["eval", "nowhere"], "no run at nowhere"),
        (["eval", "{workdir}", "--train-step", "7"], "no checkpoint of train_step 7"),
        (["eval", "{workdir}", "--fold", "x"], "unknown fold"),
        (["eval", "{workdir}", "--world", "chian"], "did you mean 'chain'"),
        (["eval", "{workdir}", "--world", "walk"], "the student's tokenizer has no"),
        (["eval", "{workdir}", "--shards", "{other}"], "were made with tokenizer"),
        (["eval", "{workdir}", "--recipe", "experiments.base:smoke"], "was not trained by recipe 'smoke' as it is now"),
        (["sample", "nowhere"], "no run at nowhere"),
        (["sample", "{workdir}", "--temperature", "-1"], "temperature is -1"),
        (["sample", "{workdir}", "--vote", "8"], "give a --temperature above 0"),
        (["sample", "{workdir}", "--vote", "0", "--temperature", "1"], "1 <= warmup <= budget"),
        (["show", "experiments.base:smok"], "did you mean 'smoke'"),
        (["explain", "smoke"], "a recipe is named module:function"),
    ],
)
def test_other_commands_refuse_in_one_line_too(command, message, workdir, tmp_path, capsys):
    other = tmp_path / "other"
    step = CHAIN.trace(CHAIN.problem(0, "train", 0), "F").steps[0]
    prepare_traces([Trace("p", "a", (step,), "", "t")], other, tokenizer=word_level(["a", *CHAIN.words]))
    words = [word.format(workdir=workdir, other=other) for word in command]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


class Toy(NamedTuple):
    """A run of a student that is made by a function."""

    shards: Path
    workdir: Path
    sets: list[str]
    out: str  # what training printed


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Toy:
    folder = tmp_path_factory.mktemp("toy")
    write_world(CHAIN, folder / "s", {"F": 20})
    changes = (f"stages.0.source.shards={folder / 's'}", "stages.0.num_train_steps=6", "log_every=2")
    sets = [f"--set={change}" for change in changes]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["train", f"{TOY}:endless", "--workdir", str(folder / "w"), *sets]) == 0
    return Toy(folder / "s", folder / "w", sets, out.getvalue())


def test_progress_is_plain_lines_where_there_is_no_terminal(toy):
    lines = toy.out.splitlines()
    assert [line.split("  ")[0] for line in lines[:3]] == ["train_step 2", "train_step 4", "train_step 6"]
    assert "\x1b" not in toy.out
    assert lines[-1].startswith("finished: 6 train steps")
    assert len(lines) == 4


def test_a_student_made_by_a_function_is_built_only_by_a_recipe_that_the_user_names(toy, capsys):
    command = ["eval", str(toy.workdir), "--world", "chain", "--count", "2", "--max-new", "3"]
    assert main(command) == 2
    assert f"--recipe, as when it was trained: {TOY}:endless --set stages.0.source.shards=" in capsys.readouterr().err
    assert main([*command, "--recipe", f"{TOY}:endless", *toy.sets]) == 0
    assert main([*command, "--recipe", f"{TOY}:endless"]) == 2


def test_sigterm_saves_says_so_in_one_line_and_exits_well(toy, tmp_path):
    command = [sys.executable, "-m", "mixdistill.cli", "train", f"{TOY}:endless", "--workdir", str(tmp_path / "w")]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    child = subprocess.Popen(
        [*command, "--set", f"stages.0.source.shards={toy.shards}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert child.stdout is not None
    assert child.stdout.readline().startswith("train_step 1 ")
    child.send_signal(signal.SIGTERM)
    out, error = child.communicate(timeout=120)
    assert (child.returncode, error) == (0, "")
    last = out.splitlines()[-1]
    assert last.startswith("stopped by SIGTERM after ")
    assert last.endswith(f"saved in {tmp_path / 'w'}; the same command goes on from there")
    done = int(last.split()[4])
    assert [path.name for path in (tmp_path / "w" / "checkpoints").iterdir()] == [str(done)]


def test_help_is_instant():
    began = time.process_time(), os.times().children_user
    subprocess.run([sys.executable, "-m", "mixdistill.cli", "--help"], check=True, capture_output=True)
    assert os.times().children_user - began[1] < 0.5  # seconds of CPU: a busy machine does not count
