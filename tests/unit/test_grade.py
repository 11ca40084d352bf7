"""Answers out of texts, their equality, and algebra in processes that hang, crash or are not there."""

import dataclasses
import os
import subprocess
import sys
import time

import psutil
import pytest

from experiments.development_data import development_data
from mixdistill.errors import UserError
from mixdistill.traces import grade
from mixdistill.traces.grade import compare, grade_traces
from mixdistill.traces.grade_equal import equal
from mixdistill.traces.grade_extract import extract, extract_marked
from mixdistill.traces.grade_pool import Pool
from mixdistill.traces.readers import read
from mixdistill.traces.trace import Step, Trace, Verdict

EXTRACTED = [
    ("She has 3.\n#### 1,072", "1,072"),
    ("#### Step 1\nShe has 3 + 4 = 7 apples.", "7"),
    ("Sum.\nA: 12 apples", "12 apples"),
    ("So \\boxed{\\frac{1}{2}} and not 3.", "\\frac{1}{2}"),
    ("First \\boxed{1}, no: \\boxed{{2}}.", "{2}"),
    ("\\boxed 7", "7"),
    ('{"reasoning": "3 + 4 = 7", "answer": "7"}', "7"),
    ('```json\n{"reasoning": "cut \\n off, "answer": 7,\n', "7"),
    ('{"answer": "\\frac{1}{2}"}', "\\frac{1}{2}"),
    ('{"answer": "3 * 4 = 12"}', "12"),
    ("\\boxed{x^2 + y = 12}", "x^2 + y = 12"),
    ('{"answer": ["a", 1]}', '["a", 1]'),
    ('{"answer": "Ann pays 3 * $4 = $12 for all tickets"}', "$12"),
    ("<answer>\nIt is \\boxed{5}\n</answer>", "5"),
    ("2 comes to mind.</think>\n\nThe answer is 3.", "3"),
    ("The answer is 4.</think>", "4"),
    ("think\nanswer\nwas 5?\nanswer\nIt is 6.", "6"),
    ("**Answer:** It takes **30 minutes** longer for 6 paintings.", "30"),
    ("Final answer: (B)", "(B)"),
    ("The answer is east.", "east"),
    ("Each correct answer is worth 5 points. So Ann has 40.", "40"),
    ("16 - 4 = 12. Then 12 * $2 = $24.\nTherefore, Jo earns $24 with 12 eggs.", "$24"),
    ("30 / 10 = 3.\nThus Jon needs 3 tune-ups in 30 days.", "3"),
    ("She pays \\$5 for 2.\n\nSo the cost is \\( \\frac{5}{2} = 2.5 \\).", "2.5"),
    ("Hence the radius is √5 meters.", "√5"),
    ("So w is 6 \u2212 5i.", "6 \u2212 5i"),
    ("Therefore, Ann earns the most.", "Ann earns the most"),
    ("They are {1, 1 + √5}.", "{1, 1 + √5}"),
    ("1. Add.\n2. Done", "2"),
    ("", ""),
    ("No idea at all.", ""),
]


@pytest.mark.parametrize(("text", "answer"), EXTRACTED)
def test_extract(text, answer):
    assert extract(text) == answer


def test_marked_only():
    assert extract_marked("3 + 4 = 7 apples") == ""
    assert extract_marked("3 + 4\n#### 7") == "7"


EQUAL = [
    ("1,072", "1072", True),
    ("$18.00", "18", True),
    ("18 dollars per day", "18", True),
    ("10,\\!000", "10000", True),
    ("x = -3", "\u22123", True),
    ("1/2", "\\frac{1}{2}", True),
    ("\\dfrac12", "0.5", True),
    ("3 5/7", "3\\frac{5}{7}", True),
    ("0.3333333", "1/3", True),
    ("0.33", "1/3", False),
    ("50%", "0.5", True),
    ("50\\%", "50", True),
    ("0.5", "50", False),
    ("1.5 million", "1500000", True),
    ("90^\\circ", "90", True),
    ("-10\\,\\text{°F}", "-10", True),
    ("\\text{12 cm}", "12", True),
    ("12x", "12", None),
    ("25π", "25", None),
    ("5 or 6", "5", None),
    ("\\sqrt{8}", "2\\sqrt{2}", None),
    ("1101_2", "1101", True),
    ("1101_2", "1101_3", False),
    ("B", "\\text{(B)}", True),
    ("(b) 12 apples", "B", True),
    ("(C)", "B", False),
    ("12", "B", False),
    ("Ann", "\\text{Ann}", True),
    ("Ann earns the most", "Ann", True),
    ("Bob or Ann", "Ann", False),
    ("seven", "7", True),
    ("2:00 \\text{pm}", "2", True),
    ("2:30", "2", None),
    ('{"a": 1.0, "b": ["x"]}', '{"b": ["x"], "a": 1}', True),
    ('{"a": 2}', '{"a": 1}', False),
    ("[1, 2]", "[1, 2.0]", True),
    ("1e5", "100000", None),
    ("9" * 5000, "1", None),
]


@pytest.mark.parametrize(("answer", "reference", "verdict"), EQUAL, ids=range(len(EQUAL)))
def test_equal(answer, reference, verdict):
    assert equal(answer, reference) is verdict


def trace(text: str, reference: str = "2", **changes) -> Trace:
    return dataclasses.replace(Trace("p", "q", (Step(text),), "", "t", reference=reference), **changes)


def test_verdicts():
    graded = grade_traces(
        [
            trace("It is 2."),
            trace("It is 3."),
            trace("Who knows"),
            trace("It is 2.", reference=""),
            trace("It is 2.", verdict=Verdict.UNVERIFIED),
            trace("It is 3.", answer="2"),
        ]
    )
    assert [t.answer for t in graded] == ["2", "3", "", "2", "2", "2"]
    assert [t.verdict.value for t in graded] == ["correct", "wrong", "wrong", "ungraded", "unverified", "correct"]


ALGEBRA = [("\\sqrt{8}", "2\\sqrt{2}"), ("(x+1)^2", "x^2+2x+1"), ("\\{2, 1\\}", "\\{1, 2\\}"), ("3\\sqrt{2}", "3")]
HARD = "9^{9^{9^{9^9}}}"


def test_algebra_and_a_computation_without_end():
    pytest.importorskip("math_verify")
    pool = Pool(seconds=2.0)
    verdicts = compare([*ALGEBRA[:2], (HARD, "7"), *ALGEBRA[2:]], pool)
    pool.close()
    assert [verdict.value for verdict in verdicts] == ["correct", "correct", "unverified", "correct", "wrong"]


def test_without_math_verify_algebra_is_unverified(monkeypatch):
    monkeypatch.setattr(grade, "has_algebra", lambda: False)
    assert compare([("\\sqrt{8}", "2\\sqrt{2}"), ("2", "2")]) == [Verdict.UNVERIFIED, Verdict.CORRECT]


# A worker that does what the answer says; the reference is its verdict.
FAKE = """
import json, os, sys, time
print('"ready"', flush=True)
for line in sys.stdin:
    answer, reference = json.loads(line)
    if answer == "sleep": time.sleep(1000)
    if answer == "die": os._exit(3)
    if answer == "loop":
        while True: pass
    print("null" if answer == "unable" else json.dumps(reference == "yes"), flush=True)
"""


def fake(workers: int = 1) -> Pool:
    return Pool(workers, seconds=0.1, command=("-c", FAKE))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_lost_process_costs_its_pair(workers):
    pool = fake(workers)
    words = ["go", "sleep", "go", "die", "go", "loop", "unable", "go"]
    verdicts = pool.equal([(word, "yes") for word in words])
    pool.close()
    assert verdicts == [True if word == "go" else None for word in words]


def test_lost_processes_are_gone_and_closing_ends_the_rest():
    pool = fake(2)
    pool.equal([("loop", "yes"), ("go", "yes"), ("sleep", "yes"), ("go", "yes")])
    assert len(children()) <= 2
    pool.close()
    assert not children()
    assert pool.equal([("go", "yes"), ("go", "no")]) == [True, False]
    pool.close()


def children() -> list:
    return [child for child in psutil.Process().children() if FAKE in child.cmdline()]


def test_a_worker_that_cannot_start_is_not_tried_for_every_pair():
    pool = Pool(command=("-c", "import sys, pathlib; pathlib.Path(sys.argv[0]); sys.exit(1)"))
    start = time.monotonic()
    assert pool.equal([("a", "b")] * 500) == [None] * 500
    assert time.monotonic() - start < 20


def test_an_interrupted_question_does_not_answer_the_next(monkeypatch):
    pool = fake()
    assert pool.equal([("go", "yes")]) == [True]
    from mixdistill.traces import grade_pool

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(grade_pool, "_read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.equal([("go", "no")])
    assert pool.equal([("go", "yes")]) == [True]
    pool.close()


def test_a_killed_parent_leaves_no_worker():
    code = (
        "import os, sys; from mixdistill.traces.grade_pool import Pool\n"
        f"pool = Pool(command=('-c', {FAKE!r})); pool.equal([('go', 'yes')])\n"
        "print(pool._workers[0]._process.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout
        worker = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 30
    while psutil.pid_exists(worker) and psutil.Process(worker).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert os.getpid() != worker


def test_agreement_with_recorded_labels():
    """A part of what scripts/grading_agreement.py measures, without the algebra."""
    try:
        folder = development_data()
    except UserError as error:
        pytest.skip(str(error))
    for name, least in {"gsm8k_teachers/gemma-2-2b-it": 0.99, "gsm8k_longcot/deepseek-r1": 0.97}.items():
        traces = [row for row in read(folder / f"{name}.jsonl.gz") if isinstance(row, Trace)]
        told = [(equal(extract(t.text), t.reference), t.meta["label"]) for t in traces]
        assert sum(verdict is label for verdict, label in told) >= least * len(told)
