"""`mixdistill inspect` on shards whose findings are known, without and with a student."""

import json
import sys
import textwrap

import jax
import numpy as np
import pytest

from mixdistill.cli import main
from mixdistill.diagnostics.inspection import plain
from mixdistill.traces.prepare import prepare_traces
from mixdistill.traces.tokenizer import train_bpe
from mixdistill.traces.trace import Step, Trace, Verdict

NUM_PROBLEMS = 40


def make_traces() -> list[Trace]:
    """plain and copy agree; backward reads the same words in the opposite order; looper is long, loops, and fails."""
    random, traces = np.random.default_rng(0), []

    def add(problem: int, teacher: str, steps: list[str], answer: str, correct: bool, fold: str) -> None:
        verdict = Verdict.CORRECT if correct else Verdict.WRONG
        prompt = f"Add up the numbers of this one row of the long table, which has number {problem}"
        traces.append(
            Trace(f"p{problem}", prompt, tuple(map(Step, steps)), answer, teacher, verdict, meta={"fold": fold})
        )

    for problem in range(NUM_PROBLEMS):
        fold = "b" if problem % 5 == 0 else "a"
        a, b, c = random.integers(10, 99, 3)
        lines = [f"take {a} and then {b} now.\n", f"take {b} and then {c} now.\n", f"The answer is {a + b + c}."]
        add(problem, "plain", lines, str(a + b + c), True, fold)
        add(problem, "copy", lines, str(a + b + c), True, fold)
        backward = [f"take {b} and also {a} now.\n", f"take {c} and also {b} now.\n", rf"\boxed{{{a + b + c}}}"]
        add(problem, "backward", backward, str(a + b + c), True, fold)
        add(problem, "looper", ["Wait, maybe. "] + ["so we go on and on and "] * 40, "", False, fold)
    return traces


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    traces = make_traces()
    tokenizer = train_bpe([trace.prompt + trace.text for trace in traces], 400)
    return prepare_traces(traces, tmp_path_factory.mktemp("inspect") / "shards", tokenizer=tokenizer)


@pytest.fixture(scope="module")
def found(shards) -> dict:
    from mixdistill.diagnostics.inspection import inspect

    return plain(inspect(shards))


def test_numbers_of_a_teacher(found):
    row = found["teachers"]["looper"]
    assert (row["traces"], row["problems"]) == (NUM_PROBLEMS, NUM_PROBLEMS)
    assert row["accuracy"]["value"] == 0
    assert row["loops"] == 1
    assert row["markers"]["counts"]["wait"] == NUM_PROBLEMS
    assert row["steps"]["median"] == 41
    assert row["answer_formats"] == {"none": 1.0}
    assert found["teachers"]["plain"]["answer_formats"] == {"phrase": 1.0}
    assert found["teachers"]["backward"]["answer_formats"] == {"boxed": 1.0}
    assert found["teachers"]["plain"]["copies"] == {"share": 1.0, "traces": {"copy": NUM_PROBLEMS}}


def test_difficulty_is_the_share_of_teachers_that_fail(found):
    # The looper always fails: difficulty is 1/4 everywhere, so nothing varies and there is no correlation.
    assert found["teachers"]["plain"]["length_against_difficulty"] == {"spearman": None, "traces": NUM_PROBLEMS}


def test_conflict_is_found_and_shown(found):
    conflicts = {name: {c["with"] for c in row["conflicts"]} for name, row in found["teachers"].items()}
    assert "backward" in conflicts["plain"]
    assert "copy" not in conflicts["plain"]
    clash = next(c for c in found["clashes"] if set(c["teachers"]) == {"plain", "backward"})
    assert clash["score"] > 0.05
    assert clash["contexts"]
    for group in found["groups"]:
        assert not {"plain", "backward"} <= set(group["teachers"])
    assert sum(added["adds"] for added in found["groups"][0]["adds"]) == pytest.approx(found["groups"][0]["coverage"])


def test_words(found):
    assert "longer" in found["teachers"]["looper"]["verdict"]
    assert "loop" in found["teachers"]["looper"]["verdict"]
    assert "conflicts with backward" in found["teachers"]["plain"]["verdict"]
    codes = {(w["code"], name) for name, row in found["teachers"].items() for w in row["warnings"]}
    assert {("loops", "looper"), ("wrong", "looper"), ("duplicates", "plain"), ("few", "plain")} <= codes


def test_problems_of_the_smaller_fold_were_seen(found):
    assert found["overlap"]["fold b"]["problems"] == 8
    # All prompts are one sentence but for the number at its end.
    assert found["overlap"]["fold b"]["seen"] == 8
    assert [w["code"] for w in found["warnings"]] == ["overlap"]


def test_json_and_exit_codes(shards, tmp_path, capsys):
    other = tmp_path / "eval.jsonl"
    prompt = make_traces()[0].prompt
    other.write_text(
        "".join(json.dumps({"problem": p, "trace": "x", "teacher": "t"}) + "\n" for p in (prompt, "Hi you"))
    )
    assert main(["inspect", str(shards.path), "--json", "--workers", "1", "--against", str(other)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert set(printed["teachers"]) == {"plain", "copy", "backward", "looper"}
    assert printed["overlap"]["against"]["seen"] == 1
    assert main(["inspect", str(shards.path), "--strict", "--workers", "1"]) == 1
    card = capsys.readouterr().out
    for words in ("looper", "where they clash", "groups without a conflicting pair", "warnings", "leave them out"):
        assert words in card
    assert main(["inspect", str(tmp_path / "none")]) == 2


def test_nothing_to_warn_of(tmp_path, capsys):
    traces = [Trace(f"p{i}", f"q{i}", (Step(f"It is {i}. "),), "", "t") for i in range(3)]
    shards = prepare_traces(traces, tmp_path / "s", tokenizer=train_bpe([t.text + t.prompt for t in traces], 300))
    assert main(["inspect", str(shards.path), "--strict", "--workers", "1"]) == 0
    assert "unremarkable" in capsys.readouterr().out


def test_one_trace_and_one_teacher(tmp_path, capsys):
    traces = [Trace("p", "q", (Step("a"),), "", "t")]
    shards = prepare_traces(traces, tmp_path / "s", tokenizer=train_bpe(["a q"], 300))
    assert main(["inspect", str(shards.path), "--json", "--workers", "1"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["teachers"]["t"]["accuracy"]["value"] is None
    assert printed["teachers"]["t"]["behaviours"]["transitions"][0] == [None, None, None]


def test_with_a_student(shards, tmp_path, monkeypatch, capsys):
    (tmp_path / "a_student.py").write_text(
        textwrap.dedent(f"""
        import jax
        from mixdistill.students.decoder import make_student
        from mixdistill.students.families import tiny

        def student():
            made = make_student(tiny({shards.tokenizer.vocab_size}))
            return made, jax.jit(made.init)(jax.random.key(0))
        """)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "a_student", raising=False)
    monkeypatch.setattr("jax.local_devices", lambda: jax.devices()[:1])
    command = ["inspect", str(shards.path), "--student", "a_student.py:student", "--workers", "1", "--max-traces", "8"]
    assert main([*command, "--json", "--ledger", str(tmp_path / "none")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["student"]["traces"] == 32
    assert not printed["student"]["anchor_is_learned"]
    for name in ("surprisal", "grape", "rank_surprisal_ratio", "ifd", "aslec_drop", "lowest_confidence", "grace"):
        row = printed["teachers"]["plain"]["measures"][name]
        assert row["count"] == 8
        assert row["value"] is not None
    assert printed["teachers"]["plain"]["undecidable"] is None
    # The same texts by another name: the same gradients.
    a, b = printed["pairs"]["teachers"].index("plain"), printed["pairs"]["teachers"].index("copy")
    assert printed["pairs"]["gradient_cosine"][a][a] == pytest.approx(1)
    assert printed["pairs"]["gradient_cosine"][a][b] > 0.5
    assert main([*command, "--anchor", "plane"]) == 2
    assert "did you mean 'plain'" in capsys.readouterr().err
