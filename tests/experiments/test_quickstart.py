"""The quickstart in a tiny form, end to end: numbers are chance, everything else is as in the real one."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from experiments import quickstart
from experiments.quickstart import Arm, Result, Size, broken, main, table

TINY = Size(traces=220, tokens=2_500, rows=8, length=64, test=30, validation=16, curve=2, curve_problems=8, workers=0)


@pytest.fixture
def three_teachers(monkeypatch):
    monkeypatch.setattr(quickstart, "COVERAGE", {name: quickstart.COVERAGE[name] for name in "FHB"})


def test_end_to_end(tmp_path, capsys, three_teachers):
    code = main(["--seeds", "31", "--out", str(tmp_path)], TINY)
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "quickstart.json").read_text())
    assert list(found) == ["arms"]
    assert list(found["arms"]) == ["best_single", "pooled", "mixdistill"]
    for row in found["arms"].values():
        assert list(row) == ["accuracy", "low", "high", "tokens_seen", "tokens_trained", "seconds"]
        assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
        assert TINY.tokens <= row["tokens_seen"] < TINY.tokens + TINY.rows * TINY.length
        assert row["tokens_trained"] == row["tokens_seen"]  # no gate closes anything
        assert row["seconds"] > 0
    assert (tmp_path / "quickstart.png").read_bytes().startswith(b"\x89PNG")
    assert code == ("NOT AS PROMISED" in printed)
    for said in ("best single", "pooled", "mixdistill", "B was kept apart from F and H", "F-B 0.", "F-H 0."):
        assert said in printed
    (tmp_path / "quickstart.json").unlink()


def arm(name, shares, seed_arms=("F", "F")):
    random = np.random.default_rng(0)
    results = [
        Result(letter, seed, random.random(500) < share, share, 400, 300, 5.0, [], [])
        for seed, (letter, share) in enumerate(zip(seed_arms, shares, strict=True))
    ]
    return Arm(name, results)


def test_the_promise_is_checked_by_its_intervals():
    good = [arm("best_single", [0.6, 0.7]), arm("pooled", [0.1, 0.12]), arm("mixdistill", [0.97, 0.98])]
    assert broken(good) == []
    worse = [arm("best_single", [0.9, 0.9]), arm("pooled", [0.5, 0.1]), arm("mixdistill", [0.6, 0.6])]
    assert len(broken(worse)) == 2


def test_the_table_has_a_line_an_arm():
    console = Console(width=80, file=io.StringIO())
    arms = [arm("best_single", [0.6, 0.7]), arm("pooled", [0.1, 0.12]), arm("mixdistill", [0.97, 0.98])]
    console.print(table(arms))
    lines = [line for line in console.file.getvalue().splitlines() if line.strip()]
    assert [line.split()[0] for line in lines[-3:]] == ["best", "pooled", "mixdistill"]
    assert "400" in lines[-1]
    assert "300" in lines[-1]


def test_ctrl_c_leaves_no_result(tmp_path, monkeypatch, capsys):
    def stopped(*unused):
        raise KeyboardInterrupt

    monkeypatch.setattr(quickstart, "study", stopped)
    assert main(["--out", str(tmp_path)], TINY) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (tmp_path / "quickstart.json").exists()
