"""`mixdistill report` on runs written by hand: what is read back, the summary, the page's sections."""

import json

import numpy as np
import pytest

from mixdistill.cli import main
from mixdistill.reports import data_page
from mixdistill.reports.markdown import summary
from mixdistill.reports.numbers import number, share
from mixdistill.reports.run_data import find_runs
from mixdistill.reports.run_page import run_sections, study_sections
from mixdistill.reports.viewer import choose_traces, pieces, trace_views
from mixdistill.traces.prepare import prepare_traces
from mixdistill.traces.tokenizer import train_bpe, word_level
from mixdistill.traces.trace import Step, Trace, Verdict


def line(train_step: int, ann: float, bob: float | None, **metrics) -> dict:
    metrics = {"loss": ann, "kept": 0.5, "teacher/nll": {"ann": ann, "bob": bob}, **metrics}
    weights = {"teacher/nll": {"ann": 30.0, "bob": 10.0 if bob is not None else 0.0}}
    return {"train_step": train_step, "tokens": 40 * train_step, "seconds": 1.5, "metrics": metrics, "weights": weights}


def write_run(folder, lines: list[dict], shards: str = "nowhere") -> None:
    folder.mkdir(parents=True)
    (folder / "recipe.txt").write_text(f"name = 'r'\nstages.0.source.shards = {shards!r}\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines) + '{"cut off')


@pytest.fixture
def study(tmp_path):
    gates = {
        "gate/imitate/worst": 0.75,
        "teacher/gate/imitate/worst": {"ann": 1.0, "bob": 0.5},
        "teacher/kept": {"ann": 1.0, "bob": 0.01},
    }
    write_run(
        tmp_path / "study" / "mixed-0",
        [line(10, 2.0, 3.0, **gates), line(20, 1.0, 2.0, **gates, **{"optimizer/skipped": 2.0})],
    )
    write_run(tmp_path / "study" / "deep" / "single|0", [line(10, 1.5, None)])
    answers = {"task": "t", "accuracy": {"mean": 0.5, "low": 0.4, "high": 0.6}, "num_problems": 9, "finished": 1.0}
    found = {"train_step": 20, "answers": answers, "held_out": {"ann": {"nll": 1.25, "content_nll": None, "tokens": 7}}}
    (tmp_path / "study" / "mixed-0" / "eval.json").write_text(json.dumps(found))
    return tmp_path / "study"


def test_runs_are_read_back(study):
    deep, mixed = find_runs(study)
    assert (deep.name, mixed.name) == ("deep/single|0", "mixed-0")
    assert mixed.shards == ("nowhere",)
    assert mixed.teachers == ["ann", "bob"]
    assert mixed.series("loss") == ([10, 20], [2.0, 1.0])
    assert mixed.series("teacher/nll", "bob") == ([10, 20], [3.0, 2.0])
    assert mixed.token_shares() == {"ann": ([10, 20], [0.75, 0.75]), "bob": ([10, 20], [0.25, 0.25])}
    assert deep.token_shares()["bob"] == ([10], [0.0])
    assert [found["train_step"] for found in mixed.evaluations] == [20]


def test_summary(study):
    text = summary(find_runs(study))
    rows = [row.split(" | ") for row in text.splitlines() if row.startswith("|")]
    assert rows[0][1:4] == ["train steps", "tokens", "loss"]
    assert rows[2][0] == r"| deep/single\|0"
    assert rows[3][1:6] == ["20", "800", "1", "50%", r"0.500 \[0.400, 0.600\]"]
    assert rows[2][-1] == "- |"
    assert "- mixed-0: 2 train steps were skipped" in text
    assert "the gates keep less than 5.0% of bob" in text


def figures_of(sections) -> dict:
    return {figure.id: figure for section in sections for figure in section.figures}


def test_sections_of_a_run(study):
    found = figures_of(run_sections(find_runs(study)[1]))
    assert {"loss", "teacher-nll", "teacher-kept", "gates-all", "teacher-gate-imitate-worst", "mixture-shares"} <= set(
        found
    )
    assert [trace["y"] for trace in found["teacher-nll"].data] == [[2.0, 1.0], [3.0, 2.0]]
    assert found["gates-all"].data[0]["name"] == "imitate/worst"
    assert found["loss"].data[0]["x"] == [10, 20]


def test_sections_of_a_study(study):
    runs, evaluation = study_sections(find_runs(study))
    assert [row[0].text for row in runs.tables[0].rows] == ["deep/single|0", "mixed-0"]
    assert [cell.value for cell in runs.tables[0].rows[0]][-2:] == [1.5, ""]
    assert runs.figures[0].data[1]["x"] == [400, 800]
    answers, held_out = evaluation.tables
    assert answers.rows[0][3].value == 0.5
    assert held_out.rows[0][0].text == "mixed-0, ann"
    assert held_out.rows[0][3].text == "-"


def test_page_without_shards_and_without_metrics(study, tmp_path, capsys):
    write_run(tmp_path / "empty", [])
    for folder in (study, tmp_path / "empty"):
        page = tmp_path / f"{folder.name}.html"
        assert main(["report", str(folder), "-o", str(page)]) == 0
        assert "</html>" in page.read_text()[-20:]
    assert "without traces: no shards at nowhere" in capsys.readouterr().err
    assert main(["report", str(study)]) == 0
    assert "| mixed-0 |" in capsys.readouterr().out


def test_refusals(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "no run in" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none")]) == 2
    write_run(tmp_path / "run", [])
    assert main(["report", str(tmp_path / "run"), "-o", "/proc/none/page.html"]) == 2
    assert "choose another file" in capsys.readouterr().err


def make_shards(folder, tokenizer=None):
    traces = [
        Trace(f"p{i}", "Say é.", (Step("Naïve 😀 so. "), Step(f"It is {i}" + " x" * i)), "", t, v)
        for i in range(4)
        for t, v in (("ann", Verdict.CORRECT), ("bob", Verdict.WRONG if i > 1 else Verdict.CORRECT))
    ]
    tokenizer = tokenizer or train_bpe(["abc"], 258)  # bytes: a character is several tokens
    return prepare_traces(traces, folder, tokenizer=tokenizer)


def test_pieces_are_the_text(tmp_path):
    shards = make_shards(tmp_path / "s")
    for encoded in (shards[0], shards[7]):
        found = pieces(shards.tokenizer, encoded)
        assert len(found) == len(encoded.tokens) - encoded.num_prompt
        assert "".join(found) == encoded.trace.text + "<eos>"
    words = make_shards(tmp_path / "w", word_level(["Naïve", "😀", "so.", "It", "is", "x", "Say", "é.", *"0123"]))
    assert "".join(pieces(words.tokenizer, words[3])) == words[3].trace.text + "<eos>"


def test_views_mask_the_least_confident_tenth_of_the_steps(tmp_path):
    shards = make_shards(tmp_path / "s")
    numbers, fields = choose_traces(shards, 6), {}
    assert len({shards.index["teacher_id"][n] for n in numbers[:2]}) == 2
    for rank, n in enumerate(numbers[:5]):
        steps = shards[n].step_id[shards[n].num_prompt :]
        confidence = (10.0 * steps + rank).astype(np.float32)
        fields[n] = {"label_logprob": -confidence, "confidence": confidence}
    views = trace_views(shards, numbers, fields)
    # Ten steps with means 10..14 and 20..24: the lowest is below the value at place 1.
    assert [view["masked"] for view in views] == [[1], [], [], [], [], []]
    assert views[5]["surprisal"] == []
    assert views[0]["surprisal"][0] == 10.0


def test_length_over_difficulty_by_hand(tmp_path):
    curves = data_page.length_against_difficulty(make_shards(tmp_path / "s"))
    # Bob fails problems 2 and 3: half of the teachers. The texts grow with the number of the problem.
    assert curves["ann"][0] == [0.0, 0.5]
    assert curves["ann"][1][0] < curves["ann"][1][1]


def test_token_calibration_by_hand():
    fields = [{"top1_logprob": np.log(np.array([0.95, 0.95, 0.25, 1.0], np.float32)), "rank": np.array([1, 2, 1, 1])}]
    bins = data_page.token_calibration(fields)
    assert bins[9] == (pytest.approx(0.9667, abs=1e-3), pytest.approx(2 / 3), 3)
    assert bins[2] == (pytest.approx(0.25), 1.0, 1)
    assert sum(count for *_, count in bins) == 4


def test_numbers_as_text():
    assert [number(x) for x in (None, float("nan"), 1234.6, 3, 0.12345)] == ["-", "-", "1,235", "3", "0.123"]
    assert [share(x) for x in (None, 0.0, 0.0123, 0.5)] == ["-", "0%", "1.2%", "50%"]
