"""The studies of the built-in worlds in tiny forms, end to end: numbers are chance, everything else is as in the real
ones."""

import math

import pytest

from experiments import undecidable, walk
from mixdistill.diagnostics.undecidable import Undecidable


def test_walk(tmp_path, capsys):
    size = walk.Size(traces=60, tokens=1_500, rows=4, length=64, problems=0.02, workers=0)
    assert walk.main(["--arms", "FK", "gated", "--seeds", "3", "--out", str(tmp_path)], size) == 0
    printed = capsys.readouterr().out
    first = [line.split()[0] for line in printed.splitlines() if line.strip()]
    assert [word for word in first if word in ("FK", "gated")] == ["FK", "gated"]
    for split in walk.SPLITS:
        assert split in printed


def test_walk_names_an_unknown_arm(capsys):
    with pytest.raises(SystemExit):
        walk.main(["--arms", "FQ"])
    assert "unknown arm 'FQ'" in capsys.readouterr().err


def test_the_gated_student_has_an_anchor_first(tmp_path):
    anchor, gated = walk.recipe(tmp_path, "gated", 0, walk.Size()).stages
    assert anchor.source.teachers == ("F",)
    assert set(gated.source.teachers) == set(walk.POOL)
    assert anchor.num_tokens + gated.num_tokens == walk.Size().tokens
    assert [gate.__name__ for gate in gated.objective.terms["imitate"].gates] == ["worst_token"]
    assert anchor.objective.terms["imitate"].gates == ()


def row(late):
    return Undecidable(0.5, 0.5, late, late, 10, 5)


def test_verdicts_are_compared_with_what_is_known():
    good = [
        undecidable.Found("chain", 0.05, {name: row(0.5 if name in "BMSC" else 0.02) for name in "BMSCHN"}),
        undecidable.Found("walk", 0.05, {name: row(0.2 if name in "KCWH" else 0.02) for name in "KCWHTN"}),
    ]
    assert undecidable.wrong(good) == []
    bad = [undecidable.Found("chain", 0.05, {"B": row(0.02), "H": row(0.5), "N": row(math.nan)})]
    assert undecidable.wrong(bad) == ["chain B", "chain H", "chain N"]
