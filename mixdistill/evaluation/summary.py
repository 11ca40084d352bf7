"""A task's answers as numbers, and as lines of text."""

import collections
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from mixdistill.evaluation.answers import Answer, correctness
from mixdistill.evaluation.calibration import Bin, calibration_bins, expected_calibration_error
from mixdistill.evaluation.intervals import Interval, wilson


class Summary(NamedTuple):
    """Of one student on one task."""

    accuracy: Interval  # over problems
    num_problems: int
    finished: float  # share of completions that ended by themselves
    valid: float  # share whose reasoning is right, answer apart; NaN where nobody can tell
    calibration_error: float  # expected, of the answer; NaN where no answer was found in any text
    num_tokens: float  # a completion, mean
    errors: dict[str, int]  # kind -> completions, most frequent first
    by_difficulty: dict[int, tuple[Interval, int]]  # accuracy and number of problems
    calibration: tuple[Bin, ...] = ()  # what the calibration error is of

    def to_json(self) -> dict[str, Any]:
        """JSON values; None for NaN."""
        return {
            "accuracy": _json(self.accuracy._asdict()),
            "num_problems": self.num_problems,
            **_json({name: getattr(self, name) for name in ("finished", "valid", "calibration_error", "num_tokens")}),
            "calibration": [list(one) for one in self.calibration],
            "errors": self.errors,
            "by_difficulty": {
                str(difficulty): {**_json(interval._asdict()), "num_problems": count}
                for difficulty, (interval, count) in self.by_difficulty.items()
            },
        }


def summarise(answers: Sequence[Answer]) -> Summary:
    """All numbers of one task; there is at least one answer."""
    groups: dict[int, list[Answer]] = collections.defaultdict(list)
    for one in answers:
        groups[one.problem.difficulty].append(one)
    valid = [one.valid for one in answers if one.valid is not None]
    sure = np.array([one.confidence for one in answers])
    return Summary(
        _accuracy(answers),
        len(answers),
        float(np.mean([one.finished for one in answers])),
        float(np.mean(valid)) if valid else math.nan,
        expected_calibration_error(sure, correctness(answers)),
        float(np.mean([one.num_tokens for one in answers])),
        dict(collections.Counter(one.error for one in answers if one.error).most_common()),
        {difficulty: (_accuracy(groups[difficulty]), len(groups[difficulty])) for difficulty in sorted(groups)},
        tuple(calibration_bins(sure, correctness(answers))),
    )


def lines(name: str, summary: Summary) -> Iterator[str]:
    """For people."""
    yield f"{name}: {summary.num_problems} problems, greedy"
    yield f"  accuracy           {summary.accuracy}"
    if len(summary.by_difficulty) > 1:
        for difficulty, (interval, count) in summary.by_difficulty.items():
            yield f"    difficulty {difficulty:<6d} {interval}  ({count} problems)"
    yield f"  finished           {summary.finished:.3f}  ({summary.num_tokens:.1f} tokens a completion)"
    if not math.isnan(summary.valid):
        yield f"  valid reasoning    {summary.valid:.3f}"
    if not math.isnan(summary.calibration_error):
        yield f"  calibration error  {summary.calibration_error:.3f}"
    if summary.errors:
        yield f"  errors             {', '.join(f'{kind} {count}' for kind, count in summary.errors.items())}"


def _accuracy(answers: Sequence[Answer]) -> Interval:
    return wilson(int(correctness(answers).sum()), len(answers))


def _json(values: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}
