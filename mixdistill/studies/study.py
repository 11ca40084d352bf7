"""What a study is made of. One lives in one file, whose function `study` returns it; `mixdistill sweep` runs it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mixdistill.errors import UserError, unknown
from mixdistill.studies.crew import Report

Outcome = Literal["holds", "holds in part", "overturned", "not testable at this scale"]


class Row(NamedTuple):
    """One arm with one seed: all that is kept of it. NaN is no data."""

    arm: str
    seed: int
    outcomes: Mapping[str, Sequence[bool]] = {}  # measure -> one a problem; the same problems for all arms and seeds
    numbers: Mapping[str, float] = {}  # measure -> a number
    spent: Mapping[str, float] = {}  # "tokens seen", "tokens trained", "flops"


class Cell(NamedTuple):
    """What an arm is given."""

    arm: str
    seed: int
    size: Any
    data: Path  # what `Study.prepare` wrote for this seed; read it only
    folder: Path  # for this arm and seed alone; empty
    needs: Mapping[str, Row]  # rows of the arms that this one needs, with this seed
    report: Report  # call it with the share that is done


class Measure(NamedTuple):
    """A column of the table: of `outcomes` (a share of problems) or of `numbers`."""

    name: str
    title: str
    places: int = 3


class Comparison(NamedTuple):
    """One arm minus another in a measure, paired by seed and, in outcomes, by problem."""

    one: str
    other: str
    measure: str


class Verdict(NamedTuple):
    """What follows. `outcome` is about the claim that is put to the test; `words` is one sentence, `more` the rest."""

    outcome: Outcome
    words: str
    more: str = ""


def nothing(seed: int, size: Any, folder: Path, report: Report) -> None:
    """Of a study whose arms need no data in common."""


@dataclasses.dataclass(frozen=True)
class Study:
    """`run(cell)` gives a `Row`; it depends on the cell's arm, seed, size and needs alone.

    `derive` makes rows of arms that need no training from the others', such as the best of several; its arms are not
    in `arms`. `verdict` is given `results.Results`. `size` is a frozen dataclass, `tiny` the same so small that an arm
    takes seconds.
    """

    name: str
    question: str
    expected: str  # what the papers say, with their figures
    decides: str  # which default or advice depends on it
    sources: Sequence[str]  # arXiv ids
    arms: Mapping[str, str]  # name -> what it is
    seeds: Sequence[int]
    size: Any
    tiny: Any
    run: Callable[[Cell], Row]
    measures: Sequence[Measure]
    comparisons: Sequence[Comparison]
    verdict: Callable[[Any], Verdict]
    prepare: Callable[[int, Any, Path, Report], None] = nothing  # (seed, size, folder, report): data for all arms
    needs: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)  # arm -> arms that come before it
    derive: Callable[[Sequence[Row]], Sequence[Row]] = lambda rows: ()
    notes: str = ""  # for the reader of the table

    @property
    def module(self) -> str:
        """Where it is written: what its rows depend on."""
        return self.run.__module__

    def choose(self, arms: Sequence[str] | None) -> list[str]:
        """These arms (None: all) with those that they need, in the study's order. Raises `UserError` for unknown
        ones."""
        wanted = set(self.arms if arms is None else arms)
        for name in wanted - set(self.arms):
            raise unknown(f"arm of study {self.name}", name, self.arms)
        wanted |= {needed for arm in wanted for needed in self.needs.get(arm, ())}
        return [arm for arm in self.arms if arm in wanted]


def load_study(name: str) -> Study:
    """What `experiments.NAME:study` returns, or another function named as module:function or file.py:function. Raises
    `UserError` where there is none."""
    from mixdistill.recipe.load import find_function

    found = find_function(name if ":" in name else f"experiments.{name}:study", "study")()
    if not isinstance(found, Study):
        raise UserError(f"{name} returned {type(found).__name__}, not a Study")
    return found
