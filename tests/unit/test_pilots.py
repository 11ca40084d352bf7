"""Pilots: their batches by hand, what they learn, the second opinion, and the pilot-mix table, on two tiny worlds."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from mixdistill.cli import main
from mixdistill.data.sequences import Scored
from mixdistill.diagnostics.undecidable import SecondOpinion, agreed
from mixdistill.errors import UserError
from mixdistill.evaluation.disagreement import add_second_opinion
from mixdistill.reports.card import _pairwise, _pilots, _torn
from mixdistill.students.decoder import make_student
from mixdistill.students.families import tiny
from mixdistill.students.weights import save_hf
from mixdistill.traces.prepare import prepare_traces
from mixdistill.traces.tokenizer import word_level
from mixdistill.traces.trace import Step, Trace, Verdict
from mixdistill.training.pairwise import matrices, rows
from mixdistill.training.pairwise import table as pairwise_table
from mixdistill.training.pilot_mix import Pilot, check_teachers, mixes, table
from mixdistill.training.pilots import Pilots, Plan, _in_turn, content_nll, read_sequences
from mixdistill.training.second_opinion import unused_token

DIGITS = [str(d) for d in range(10)]
TOKENIZER = word_level([*DIGITS, "go", "=", "####"])
STUDENT = make_student(tiny(TOKENIZER.vocab_size))
PARAMS = jax.jit(STUDENT.init)(jax.random.key(0))
PLAN = Plan(tokens=8_000, learning_rate=1e-2, batch_tokens=512)


def traces(count: int = 60) -> list[Trace]:
    """up and same count on from the problem's digit, down counts back from it; the answer is the third digit."""
    found = []
    for i in range(count):
        start = i % 10
        for teacher, sign in (("up", 1), ("same", 1), ("down", -1)):
            digits = [str((start + sign * k) % 10) for k in (1, 2, 3)]
            answer = digits.pop()
            steps = (Step("= = = "), *(Step(f"{digit} ") for digit in digits), Step(f"#### {answer}"))
            found.append(
                Trace(f"p{i}", f"go {start}", steps, answer, teacher, Verdict.CORRECT, reference=str((start + 3) % 10))
            )
    return found


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return prepare_traces(traces(), tmp_path_factory.mktemp("pilots") / "s", tokenizer=TOKENIZER)


@pytest.fixture(scope="module")
def anchor(shards):
    """Parameters of a student that has learned "up"."""
    return Pilots(STUDENT, PARAMS, PLAN, longest=16).train([read_sequences(shards, numbers_of(shards, "up"))])


def numbers_of(shards, teacher: str) -> np.ndarray:
    return np.flatnonzero(shards.index["teacher_id"] == shards.teachers.index(teacher))


def test_batches_hold_whole_sequences_of_all_pools_in_equal_shares():
    pools = [[Scored(np.full(n, 3, np.int32), 2) for n in (9, 12)], [Scored(np.full(40, 5, np.int32), 10)]]
    pilots = Pilots(STUDENT, PARAMS, Plan(tokens=10, batch_tokens=256), longest=40)
    seen = {3: 0, 5: 0}
    stream = _in_turn(pools, 64, np.random.default_rng(0))
    waiting: list[Scored] = []
    for _ in range(20):
        batch = pilots._batch(waiting, stream)
        assert batch["tokens"].shape == (4, 64)
        for row in range(4):
            for segment in range(1, batch["segment_id"][row].max() + 1):
                inside = batch["segment_id"][row] == segment
                token = batch["tokens"][row][inside][0]
                assert (batch["tokens"][row][inside] == token).all()
                assert inside.sum() in ((8, 11) if token == 3 else (39,))
                seen[int(token)] += int(batch["valid"][row][inside].sum())
    assert 0.8 < seen[3] / seen[5] < 1.25


def test_a_pilot_learns_its_teacher_and_leaves_the_student_alone(shards, anchor):
    (old, _), (up, count), (down, _) = (
        content_nll(STUDENT, params, shards, numbers_of(shards, name))
        for params, name in ((PARAMS, "up"), (anchor, "up"), (anchor, "down"))
    )
    assert count == 60 * 3
    assert up < 0.2 < old
    assert down > 1
    again = jax.jit(STUDENT.init)(jax.random.key(0))
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(PARAMS), strict=True))
    with pytest.raises(UserError, match="no traces"):
        Pilots(STUDENT, PARAMS, PLAN, longest=16).train([[]])


def test_a_tag_stands_before_a_trace_and_is_not_learned(shards):
    plain, tagged = (read_sequences(shards, [0], tag)[0] for tag in (None, 7))
    assert tagged.tokens.tolist() == [7, *plain.tokens.tolist()]
    assert tagged.start == plain.start + 1
    assert unused_token(6, [Scored(np.array([0, 1, 1, 4]), 1), Scored(np.array([3, 2, 0]), 1)]) == 5
    assert unused_token(5, [Scored(np.array([0, 1, 1, 4, 3, 2, 0]), 1)]) == 4


def test_inspect_trains_them_on_request(shards, anchor, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("jax.local_devices", lambda: jax.devices()[:1])
    save_hf(STUDENT, anchor, tmp_path / "up")
    command = ["inspect", str(shards.path), "--workers", "1", "--ledger", str(tmp_path / "none")]
    assert main([*command, "--pilot"]) == 2
    assert "give --student" in capsys.readouterr().err
    command += ["--student", str(tmp_path / "up"), "--anchor", "up", "--max-traces", "20"]
    command += ["--pilot-tokens", "40000", "--pilot-learning-rate", "0.01"]
    page = tmp_path / "page.html"
    asked = ["--second-opinion", "--pilot", "up", "down", "--pairwise", "--json", "--html", str(page)]
    assert main([*command, *asked]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    for words in ("pilots: 2 times 80,000 tokens", "pilots: 3 times 40,000 tokens", "3: up + down", "up as the anchor"):
        assert words in told.err
    torn = found["teachers"]["down"]["undecidable"]
    assert torn["disagreement"] > 0.3
    assert 0.13 < torn["undecidable_late"] <= torn["disagreement"]
    second = torn["second_opinion"]
    # Nothing but the tag tells whose first digit comes: an ideal student would lose log 2 nats in one of three digits,
    # one of a short training loses more.
    assert second["tagged"] < 0.1
    assert second["untagged"] > np.log(2) / 3 - 0.05
    assert second["score"] == pytest.approx(second["untagged"] - second["tagged"])
    assert second["num_tokens"] == 6 * 3  # a tenth of the anchor's traces
    assert second["conflict"] is True
    assert (torn["conflict"], torn["verdict"]) == (True, "conflict")
    assert "undecidable" in {w["code"] for w in found["teachers"]["down"]["warnings"]}
    assert found["teachers"]["down"]["verdict"].startswith("clashes undecidably with up")
    assert [part["num_tokens"] for part in torn["profile"]] == [0, 0, 20, 20, 20, 0]
    # Nothing tells before the first digit who writes.
    assert torn["profile"][2]["undecidable"] == max(part["undecidable"] or 0 for part in torn["profile"])
    assert torn["profile"][2]["undecidable"] > 0.8
    passage = torn["passages"][0]
    assert passage["writes"].strip() in DIGITS
    assert passage["writes"] != passage["student"]
    assert passage["before"] == "= = ="
    assert passage["probability"] < 0.1 < 0.7 < passage["student_probability"]
    assert found["teachers"]["same"]["undecidable"]["conflict"] is False
    assert found["teachers"]["up"]["undecidable"] is None
    up, down, both = found["pilots"]
    assert [pilot["teachers"] for pilot in (up, down, both)] == [["up"], ["down"], ["up", "down"]]
    assert up["accuracy"]["mean"] == 1.0
    assert down["accuracy"]["mean"] < 0.2  # its answers are not those of the reference
    assert up["own_nll"]["up"] < 0.1 < both["own_nll"]["up"]
    assert both["gain"]["over"] == "up"
    # Whoever is the anchor: down clashes with both, up and same with nobody else.
    assert found["pairs"]["teachers"] == ["down", "same", "up"]
    late = found["pairs"]["undecidable_late"]
    assert [[late[i][j] is None for j in range(3)] for i in range(3)] == np.eye(3, dtype=bool).tolist()
    assert min(late[0][1], late[0][2], late[1][0], late[2][0]) > 0.13
    assert max(late[1][2], late[2][1]) < 0.05
    assert found["pairs"]["disagreement"][2][0] > 0.3
    anchors = {row["anchor"]: row for row in found["pairwise"]}
    assert all(row["learned"] and row["tokens"] == 40_000 for row in anchors.values())
    assert anchors["same"]["others"]["down"]["verdict"] == "conflict"
    assert anchors["same"]["others"]["up"]["conflict"] is False
    for words in ("clashes undecidably with up", "which the student gives", "up + down", "teacher by teacher"):
        assert words in page.read_text()


def test_a_pilot_that_has_not_learned_its_teacher_says_nothing_of_the_others(shards, capsys):
    (row,) = rows(shards, STUDENT, PARAMS, ("up",), dataclasses.replace(PLAN, tokens=100))
    assert not row.learned
    assert row.others == {}
    assert np.isnan(matrices([row], shards.teachers)["undecidable_late"]).all()
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(*_pairwise(pairwise_table([row])))
    assert "too short: not learned" in console.export_text()
    for wrong, words in (["up"], "1 teachers"), (["up", "dwn"], "did you mean 'down'"):
        command = ["inspect", str(shards.path), "--student", "nowhere", "--pairwise", *wrong]
        assert main(command) == 2
        assert words in capsys.readouterr().err


def test_the_card_shows_both_opinions_and_pilots():
    part = {"start": 0.0, "stop": 1.0, "undecidable": 0.25, "num_tokens": 4}
    passage = {"before": "3 plus", "writes": "[4]", "student": "5", "student_probability": 0.9}
    torn = {
        **dict.fromkeys(("undecidable_late", "undecidable", "disagreement", "decodability"), 0.25),
        "anchor": "up",
        "verdict": "conflict",
        "conflict": True,
        "profile": [part, {**part, "num_tokens": 0}],
        "passages": [passage],
        "second_opinion": {"score": 0.5},
    }
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(*_torn({"up": {"undecidable": None}, "do[w]n": {"undecidable": torn}}))
    made = [
        Pilot(names, np.arange(10) < right, {"a": 2.0}, 100, 1.0) for names, right in ((("a",), 4), (("a", "b"), 2))
    ]
    console.print(*_pilots(table(made)))
    text = console.export_text()
    for words in ("0.25 -", "0.5  conflict", "...'3 plus' -> do[w]n '[4]', the student '5' 90%", "limit 0.15"):
        assert words in text
    for words in ("2 of 100 tokens, 2 s", "40% [", "-0.20 [", "too short to tell"):
        assert words in text


def test_two_opinions_have_to_agree():
    assert [agreed(*pair) for pair in ((True, True), (False, False), (True, False), (None, True))] == [
        True,
        False,
        None,
        None,
    ]
    nothing = SecondOpinion(float("nan"), 0.1, 0)
    assert nothing.conflicts() is None
    row = {"conflict": True, "verdict": "conflict"}
    add_second_opinion(row, nothing)
    assert (row["conflict"], row["verdict"]) == (True, "conflict")
    add_second_opinion(row, SecondOpinion(0.5, 0.4, 9))
    assert (row["conflict"], row["verdict"]) == (None, "undecided: two opinions differ")
    assert row["second_opinion"]["score"] == pytest.approx(0.1)


def test_mixes_and_their_limit(shards):
    assert mixes("abc") == [("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")]
    assert mixes("ab") == [("a",), ("b",), ("a", "b")]
    assert check_teachers(shards, []) == ("down", "same", "up")
    with pytest.raises(UserError, match="did you mean 'down'"):
        check_teachers(shards, ["dwn"])


def test_table_compares_with_the_best_alone():
    def pilot(*teachers, right):
        return Pilot(teachers, np.arange(10) < right, dict.fromkeys(teachers, 0.5), 100, 1.0)

    alone, other, both = table([pilot("a", right=4), pilot("b", right=8), pilot("a", "b", right=5)])
    assert alone["gain"] is None
    assert other["accuracy"]["mean"] == 0.8
    assert both["gain"]["over"] == "b"
    assert both["gain"]["mean"] == pytest.approx(-0.3)
    assert both["gain"]["low"] < -0.3 < both["gain"]["high"]
    unverified = Pilot(("a",), None, {"a": 1.5}, 100, 1.0)
    assert table([unverified])[0]["accuracy"] is None
    assert not table([unverified])[0]["learned"]
