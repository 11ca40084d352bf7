"""Mixture: which recorded traces make a batch, in what shares, and the shape of the batch. Plain data for recipes."""

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mixdistill.errors import UserError, unknown

Unit = Literal["tokens", "traces"]
PackBy = Literal["mixed", "teacher"]
TooLong = Literal["drop", "truncate", "error"]


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

    def __post_init__(self):
        for name, kind in (("unit", Unit), ("pack_by", PackBy), ("too_long", TooLong)):
            if getattr(self, name) not in typing.get_args(kind):
                raise unknown(f"mixture {name}", str(getattr(self, name)), typing.get_args(kind))
        for name, least in (("rows", 1), ("length", 2)):
            if getattr(self, name) < least:
                raise UserError(f"mixture {name} is {getattr(self, name)}; it is at least {least}")
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
