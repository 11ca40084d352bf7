"""`mixdistill score` from end to end: the three kinds of student, options, refusals."""

import sys
import textwrap

import jax
import pytest

from mixdistill.cli import main
from mixdistill.data.ledger import open_ledger
from mixdistill.students.decoder import make_student
from mixdistill.students.families import tiny
from mixdistill.students.weights import save_hf
from mixdistill.traces.prepare import prepare_traces
from mixdistill.traces.tokenizer import word_level
from mixdistill.traces.trace import Step, Trace

TOKENIZER = word_level(["a", "b", "c", "d"])


@pytest.fixture
def shards(tmp_path):
    traces = [Trace(f"p{i}", "a b", (Step("c d "), Step("a")), "a", "xy"[i % 2]) for i in range(4)]
    return prepare_traces(traces, tmp_path / "shards", tokenizer=TOKENIZER)


@pytest.fixture
def function(tmp_path, monkeypatch):
    (tmp_path / "my_student.py").write_text(
        textwrap.dedent(f"""
        import jax
        from mixdistill.students.decoder import make_student
        from mixdistill.students.families import tiny

        def student():
            made = make_student(tiny({TOKENIZER.vocab_size}))
            return made, jax.jit(made.init)(jax.random.key(0))

        def wrong():
            return 3
        """)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jax.local_devices", lambda: jax.devices()[:1])  # several are compared in test_scoring
    monkeypatch.delitem(sys.modules, "my_student", raising=False)
    return "my_student.py:student"


def test_a_function_and_then_nothing_to_do(shards, function, tmp_path, capsys):
    command = ["score", str(shards.path), "--student", function]
    assert main(command) == 0
    assert "4 traces scored, 0 were there already" in capsys.readouterr().out
    assert main(command) == 0
    assert "0 traces scored, 4 were there already" in capsys.readouterr().out
    assert len(open_ledger(tmp_path / "shards.ledger", shards).fields(0)["rank"]) == 4


def test_further_contexts_tell_their_cost(shards, function, tmp_path, capsys):
    options = ["--alone", "--local", "1", "--reverse", "--store-topk", "2", "--out", str(tmp_path / "there")]
    assert main(["score", str(shards.path), "--student", function, *options]) == 0
    told = capsys.readouterr().err
    # full reads 5 columns a trace; alone 4; local-1 the prompt and each step before its own: 3 + 3.
    for line in ("topk-2: 1.0 times", "alone: 0.8 times", "local-1: 1.2 times"):
        assert f"context {line}" in told
    for context in ("full", "topk-2", "alone", "local-1", "prompt", "reverse"):
        assert open_ledger(tmp_path / "there", shards, context=context).missing == 0


def test_published_weights(shards, tmp_path, capsys):
    student = make_student(tiny(TOKENIZER.vocab_size))
    save_hf(student, jax.jit(student.init)(jax.random.key(0)), tmp_path / "hf")
    assert main(["score", str(shards.path), "--student", str(tmp_path / "hf")]) == 0
    assert "4 traces scored" in capsys.readouterr().out
    TOKENIZER.save(tmp_path / "hf")
    assert main(["score", str(shards.path), "--student", str(tmp_path / "hf")]) == 0
    word_level(["a", "z"]).save(tmp_path / "hf")
    assert main(["score", str(shards.path), "--student", str(tmp_path / "hf")]) == 2
    assert "prepare them with --tokenizer of the student" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("student", "told"),
    [
        ("nothing", "is no folder"),
        ("shards", "holds neither recipe.txt nor config.json"),
        ("my_student.py:wrong", "returned int"),
        ("my_student.py:studen", "did you mean 'student'"),
    ],
)
def test_refusals(shards, function, student, told, capsys):
    assert main(["score", "shards", "--student", student]) == 2
    assert told in capsys.readouterr().err
