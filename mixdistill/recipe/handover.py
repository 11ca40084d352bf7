"""Rules by which a stage ends before its budget is spent. Plain data: a rule looks at one tally's mean, train step
after train step, and what it remembers is a short list of numbers."""

import dataclasses

from mixdistill.errors import UserError

Seen = list[float]


@dataclasses.dataclass(frozen=True)
class Plateau:
    """The tally has not risen by more than `margin` above its best for `patience` looks in a row.

    Of held-out accuracy, say: a look is a train step that has the tally.
    """

    tally: str
    patience: int = 3
    margin: float = 0.0

    def __post_init__(self):
        _check_count("patience", self.patience)

    def after(self, seen: Seen, value: float) -> tuple[Seen, bool]:
        """[best, looks since]."""
        if not seen or value > seen[0] + self.margin:
            return [value, 0.0], False
        return [seen[0], seen[1] + 1], seen[1] + 1 >= self.patience


@dataclasses.dataclass(frozen=True)
class Below:
    """The mean of the last `window` looks is below `limit`: of the reward spread, when nothing is left to learn."""

    tally: str
    limit: float
    window: int = 10

    def __post_init__(self):
        _check_count("window", self.window)

    def after(self, seen: Seen, value: float) -> tuple[Seen, bool]:
        """The last looks."""
        seen = [*seen, value][-self.window :]
        return seen, len(seen) == self.window and sum(seen) / self.window < self.limit


@dataclasses.dataclass(frozen=True)
class Falls:
    """The mean of the last `window` looks is below `share` of that of the first: of the marker rate or the length of
    rollouts, the warning that a teacher who is told too much takes the student's doubts away (arXiv:2603.24472)."""

    tally: str
    share: float = 0.5
    window: int = 10

    def __post_init__(self):
        _check_count("window", self.window)

    def after(self, seen: Seen, value: float) -> tuple[Seen, bool]:
        """The first looks, and the last ones."""
        if len(seen) < self.window:
            return [*seen, value], False
        first, last = seen[: self.window], [*seen[self.window :], value][-self.window :]
        fallen = len(last) == self.window and sum(last) < self.share * sum(first)
        return [*first, *last], fallen


Rule = Plateau | Below | Falls


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise UserError(f"the {name} of a hand-over rule is {value}; it takes at least 1 look")
