"""A study without a student: rows follow from arm and seed."""

import dataclasses
import math

import numpy as np

from mixdistill.studies.study import Cell, Comparison, Measure, Row, Study, Verdict


@dataclasses.dataclass(frozen=True)
class Size:
    problems: int = 40


def prepare(seed, size, folder, report):
    (folder / "data.txt").write_text(f"{seed} {size.problems}")


def run(cell: Cell) -> Row:
    assert (cell.data / "data.txt").read_text() == f"{cell.seed} {cell.size.problems}"
    assert not list(cell.folder.iterdir())
    (cell.folder / "touched").touch()
    random = np.random.default_rng(cell.seed)
    draws = random.random(cell.size.problems)
    share = {"weak": 0.3, "strong": 0.7, "after": 0.5}[cell.arm]
    numbers = {"length": 10.0 + cell.seed, "seldom": math.nan}
    if cell.arm == "after":
        numbers["length"] = cell.needs["strong"].numbers["length"] + 1
    return Row(cell.arm, cell.seed, {"test": (draws < share).tolist()}, numbers, {"tokens seen": 100.0})


def derive(rows):
    return [row._replace(arm="best") for row in rows if row.arm == "strong"]


def verdict(results) -> Verdict:
    gain = results.difference("strong", "weak", "test")
    return Verdict("holds" if gain.low > 0 else "overturned", f"strong is {gain} against weak.")


def study() -> Study:
    return Study(
        name="toy",
        question="Is strong stronger than weak?",
        expected="yes",
        decides="nothing",
        sources=("none",),
        arms={"after": "one that needs another", "weak": "0.3", "strong": "0.7"},
        seeds=(0, 1, 2),
        size=Size(),
        tiny=Size(4),
        run=run,
        prepare=prepare,
        measures=[Measure("test", "accuracy"), Measure("length", "length", 1), Measure("seldom", "seldom")],
        comparisons=[Comparison("strong", "weak", "test"), Comparison("after", "strong", "length")],
        verdict=verdict,
        needs={"after": ("strong",)},
        derive=derive,
    )
