"""Mixture: which recorded traces make a batch, in what shares, and the shape of the batch. Plain data for recipes."""

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mixdistill.data.damage import Policy
from mixdistill.errors import UserError, unknown

Unit = Literal["tokens", "traces"]
PackBy = Literal["mixed", "teacher"]
TooLong = Literal["drop", "truncate", "error"]
Keep = Literal["lowest", "highest"]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What stands beside the shards of a trace: a column of the ledger that `mixdistill score` wrote.

    `name` is a field with an entry a token ("label_logprob"), a number a trace ("summary/surprisal"), "verdict" (1
    correct, 0 wrong, NaN neither; of the shards themselves), or "topk" with the context "topk-K".
    """

    name: str = "label_logprob"
    context: str = "full"
    student: str | None = None  # start of its fingerprint; None: the only one in the ledger
    sidecar: str | None = None  # folder of the ledger; None: SHARDS.ledger


@dataclass(frozen=True, kw_only=True)
class Select:
    """One trace a problem, by a score a trace: the one with the lowest or highest, then the first in the shards.

    A trace without a score is not taken, nor is a problem without a trace that has one.
    """

    by: Scores
    keep: Keep = "lowest"

    def __post_init__(self):
        if self.keep not in typing.get_args(Keep):
            raise unknown("selection keeps", str(self.keep), typing.get_args(Keep))
        if not (self.by.name == "verdict" or self.by.name.startswith("summary/")):
            raise UserError(
                f"a trace is selected by a number a trace, such as 'summary/surprisal', not {self.by.name!r}"
            )


@dataclass(frozen=True, kw_only=True)
class Within:
    """Traces whose score a trace lies between two quantiles of all that could be drawn, the upper one excluded.

    A trace without a score is left out; equal scores are ordered as in the shards.
    """

    by: Scores
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        if not 0 <= self.low < self.high <= 1:
            raise UserError(f"traces within the quantiles {self.low} and {self.high}; 0 <= low < high <= 1")


@dataclass(frozen=True, kw_only=True)
class Tags:
    """Every trace is told its teacher by tokens in front of its prompt, which are not trained on.

    `text` is written in the tokens of the shards, "{teacher}" being the name; None: one new token a teacher, after the
    tokenizer's own, whose embedding is learned. A share `drop` of the traces, drawn anew in every batch, goes without,
    so that the student can do without, too.
    """

    text: str | None = None
    drop: float = 0.1

    def __post_init__(self):
        if not 0 <= self.drop <= 1:
            raise UserError(f"tags are dropped with probability {self.drop}; it lies between 0 and 1")
        if self.text is not None and "{teacher}" not in self.text:
            raise UserError(f"the tag {self.text!r} does not name its teacher; write '{{teacher}}' where the name goes")


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Recorded traces as a source of batches `[rows, length]`. Raises `UserError` when it does not fit together.

    `weights` are shares of `unit`; None mixes in proportion to what there is. A weight of zero keeps a teacher's place
    (its weight may rise later). Shares count completion tokens, those that are trained on, or traces.
    """

    shards: str | tuple[str, ...]
    rows: int  # of the global batch
    length: int  # tokens a row
    weights: Mapping[str, float] | None = None
    unit: Unit = "tokens"
    teachers: tuple[str, ...] | None = None  # None: all
    folds: tuple[str, ...] | None = None  # None: all
    verdicts: tuple[str, ...] | None = None  # None: all
    seed: int = 0
    pack_by: PackBy = "mixed"  # "teacher": a row holds traces of one teacher alone
    too_long: TooLong = "drop"  # a trace that does not fit in a row
    damaged: Policy = "quarantine"  # "strict": checksums of all files at the start, and no record may be unreadable
    fields: Mapping[str, Scores] = field(default_factory=dict)  # further fields of a batch, for Objective(fields=...)
    select: Select | None = None  # None: all traces of a problem
    within: Within | None = None  # None: whatever their scores
    tags: Tags | None = None
    turns: int | None = None  # one teacher at a time, each for so many train steps; those without weight are left out
    anchor: str | None = None  # a teacher that has half of everybody's turn, and none of its own
    control: bool = False  # but a first turn of the anchor alone

    def __post_init__(self):
        for name, kind in (("unit", Unit), ("pack_by", PackBy), ("too_long", TooLong), ("damaged", Policy)):
            if getattr(self, name) not in typing.get_args(kind):
                raise unknown(f"mixture {name}", str(getattr(self, name)), typing.get_args(kind))
        for name, least in (("rows", 1), ("length", 2)):
            if getattr(self, name) < least:
                raise UserError(f"mixture {name} is {getattr(self, name)}; it is at least {least}")
        if self.turns is not None and self.turns < 1:
            raise UserError(f"mixture turns is {self.turns}; a teacher's turn lasts at least 1 train step")
        if self.anchor is not None and self.turns is None:
            raise UserError(f"mixture anchor is {self.anchor!r}, who accompanies turns; say how long they are (turns)")
        if self.control and self.anchor is None:
            raise UserError("a mixture's control is a turn of its anchor alone; name the anchor")
        for name, scores in self.fields.items():
            if (scores.name == "topk") != (name == "teacher_topk"):
                raise UserError(f"batch field {name!r} of score {scores.name!r}: 'topk' is the score of 'teacher_topk'")
        if not self.folders:
            raise UserError("a mixture needs at least one folder of shards")
        if self.weights is not None:
            check_weights(self.weights)

    @property
    def folders(self) -> tuple[str, ...]:
        """The shard folders."""
        return (self.shards,) if isinstance(self.shards, str) else tuple(self.shards)


def check_weights(weights: Mapping[str, float]) -> None:
    """Raises `UserError` unless all weights are finite, none is negative and one is positive."""
    for teacher, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(f"the weight of teacher {teacher!r} is {weight}; weights are finite and not negative")
    if not any(weights.values()):
        raise UserError(f"all weights are zero ({', '.join(weights)}); at least one teacher needs a positive one")
