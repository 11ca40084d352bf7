"""A study from the command line: what is there is not run again, what is written follows from the rows."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from mixdistill.cli import main
from mixdistill.errors import UserError
from mixdistill.evaluation import intervals
from mixdistill.studies import rows
from mixdistill.studies.results import Results
from mixdistill.studies.slurm import array
from mixdistill.studies.study import Row, load_study
from mixdistill.studies.sweep import Sweep

TOY = f"{Path(__file__).parent / 'toy_study.py'}:study"


@pytest.fixture
def sweep(tmp_path):
    """Calls the command with these folders; `sweep.results`, `sweep.runs`."""

    def call(*words: str) -> int:
        places = ["--out", str(call.results), "--runs", str(call.runs), "--jobs", "0"]
        return main(["sweep", TOY, *places, *words])

    call.results, call.runs = tmp_path / "results", tmp_path / "runs"
    return call


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]


def test_a_study_is_run_published_and_not_run_again(sweep, capsys):
    assert sweep() == 0
    first, shown = lines(sweep.results), capsys.readouterr().out
    assert [(row["arm"], row["seed"]) for row in first] == [
        (a, s) for a in ("after", "weak", "strong") for s in range(3)
    ]
    assert "9 rows to make" in shown
    assert "strong - weak" in shown
    assert sorted(path.name for path in sweep.results.iterdir()) == [
        "plot.png", "report.html", "runs.jsonl", "table.md", "verdict.md",
    ]  # fmt: skip
    verdict = (sweep.results / "verdict.md").read_text()
    assert "**holds.** strong is" in verdict
    assert "| best | 3 |" in verdict  # derived, not run
    shutil.rmtree(sweep.runs)  # the results are enough to know what is there
    assert sweep() == 0
    assert "0 rows to make, 9 are there" in capsys.readouterr().out
    assert lines(sweep.results) == first


def test_some_arms_bring_those_that_they_need(sweep):
    assert sweep("--arms", "after", "--seeds", "1") == 0
    assert [(row["arm"], row["seed"]) for row in lines(sweep.results)] == [("after", 1), ("strong", 1)]
    assert lines(sweep.results)[0]["numbers"] == {"length": 12.0, "seldom": None}
    assert sweep("--arms", "weak", "--seeds", "0-1") == 0
    assert len(lines(sweep.results)) == 4  # the others stay


def test_rows_of_other_code_or_size_are_not_taken_for_finished(sweep, monkeypatch, capsys):
    assert sweep("--arms", "weak", "--seeds", "0") == 0
    study = load_study(TOY)
    mark = rows.fingerprint(study, "weak", study.size)
    assert rows.fingerprint(study, "weak", study.tiny) != mark
    text = (Path(__file__).parent / "toy_study.py").read_text()
    code = Path(study.run.__globals__["__file__"])
    for changed, is_same in (
        (text.replace("strong is", "strong seems"), True),  # the verdict's words
        ('"""Other words."""\n' + text.partition("\n")[2], True),
        (text.replace("0.3, ", "0.2, "), False),
    ):
        monkeypatch.setattr(Path, "read_text", lambda self, *a, _t=changed, **k: _t if self == code else _read(self))
        assert (rows.fingerprint(study, "weak", study.size) == mark) == is_same
        monkeypatch.undo()


_read = Path.read_text


def test_check_compares_to_the_bit(sweep, capsys):
    assert sweep("--arms", "strong", "--seeds", "0") == 0
    assert sweep("--check", "--arms", "strong", "--seeds", "0") == 0
    assert "strong, seed 0: the same" in capsys.readouterr().out
    (row,) = lines(sweep.results)
    row["numbers"]["length"] = np.nextafter(row["numbers"]["length"], 99)
    (sweep.results / "runs.jsonl").write_text(json.dumps(row) + "\n")
    shutil.rmtree(sweep.runs)
    assert sweep("--check", "--arms", "strong", "--seeds", "0") == 1
    assert "ANOTHER ROW" in capsys.readouterr().out
    assert sweep("--check", "--seeds", "7") == 2


def test_tiny_results_stay_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", TOY, "--tiny", "--jobs", "0", "--seeds", "0"]) == 0
    assert len(lines(tmp_path / "runs/tiny/toy/results")[0]["outcomes"]["test"]) == 4
    assert not (tmp_path / "experiments").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--arms", "wek"], "did you mean 'weak'"),
        (["--seeds", "0-x"], "write 0-4 or 0,3,7"),
    ],
)
def test_bad_input_is_told(words, message, sweep, capsys):
    assert sweep(*words) == 2
    assert message in capsys.readouterr().err
    assert not sweep.results.exists()


def test_a_damaged_results_file_is_named(sweep, capsys):
    sweep.results.mkdir()
    (sweep.results / "runs.jsonl").write_text('{"arm": "weak"\n')
    assert sweep() == 2
    assert "runs.jsonl:1 is not a row" in capsys.readouterr().err


def test_unknown_studies_are_told(capsys):
    assert main(["sweep", "nothing_like_it"]) == 2
    assert "nothing_like_it" in capsys.readouterr().err
    with pytest.raises(UserError, match="not a Study"):
        load_study(f"{Path(__file__).parent / 'toy_study.py'}:Size")


def test_an_array_has_a_task_for_every_row(tmp_path):
    study = load_study(TOY)
    what = Sweep(TOY, study, study.size, tmp_path / "results", tmp_path / "runs")
    script = array(what, [("weak", 0), ("after", 2)], tiny=False)
    assert "#SBATCH --array=0-1" in script
    assert re.search(r"^1\) .* --arms after --seeds 2 --rows-only ;;$", script, re.MULTILINE)


def test_differences_are_paired_by_seed_and_problem():
    made = [Row("a", 0, {"x": [1, 1, 0, 0]}), Row("b", 0, {"x": [1, 0, 0, 0]}), Row("a", 1, {"x": [1, 0, 0, 0]}),
            Row("b", 1, {"x": [0, 0, 0, 0]}), Row("b", 2, {"x": [1, 1, 1, 1]})]  # fmt: skip
    results = Results(made)
    assert results.difference("a", "b", "x").mean == 0.25  # seed 2 has no partner
    assert results.mean("b", "x") == pytest.approx(5 / 12)
    assert math.isnan(results.difference("a", "c", "x").mean)
    assert math.isnan(results.mean("a", "y"))


def test_a_number_a_seed_has_students_interval():
    mean, low, high = intervals.mean(np.array([1.0, 2.0, np.nan, 3.0]))
    assert (mean, round(high - 2, 4), round(2 - low, 4)) == (2.0, 2.4841, 2.4841)  # t(0.975, 2) = 4.3027, s = 1
    assert math.isnan(intervals.mean(np.array([np.nan])).mean)
    assert math.isnan(intervals.mean(np.array([1.0])).low)


def test_the_bootstrap_draws_seeds_and_problems():
    x = np.random.default_rng(0).random((50, 200)) < 0.4
    mean, low, high = intervals.resampled(x)
    crossed = intervals.crossed(x.astype(float))
    assert mean == crossed.mean
    assert (high - low) / (crossed.high - crossed.low) == pytest.approx(1, abs=0.15)
    assert intervals.resampled(np.full((3, 4), 1.0)) == (1.0, 1.0, 1.0)
