"""Tallies as JSON in the position, for what a signal cut short: a train step whose held-out problems are not answered,
and a line of the metrics. They are finished when the run goes on, and all is as if it had never been interrupted."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mixdistill.objective import Tally

Batch = tuple[Sequence[int], int | None]  # its traces, and the targets planned


def write(tallies: Mapping[str, Tally], batch: Batch) -> dict[str, Any]:
    """A train step's tallies and its batch."""
    plain = to_plain(jax.device_get(dict(tallies)))
    return {"tallies": plain, "traces": list(map(int, batch[0])), "planned": batch[1]}


def read(pending: dict[str, Any]) -> tuple[dict[str, Tally], Batch]:
    """Inverts `write`."""
    return from_plain(pending["tallies"]), (pending["traces"], pending["planned"])


def to_plain(tallies: Mapping[str, Tally]) -> dict[str, Any]:
    """JSON values of numpy tallies; float32 and float64 come back to the bit."""
    return {name: [_plain(tally.sum), _plain(tally.weight)] for name, tally in tallies.items()}


def from_plain(plain: Mapping[str, Any]) -> dict[str, Tally]:
    """Inverts `to_plain`."""
    return {name: Tally(*map(_array, pair)) for name, pair in plain.items()}


def _plain(array: Any) -> list[Any]:
    array = np.asarray(array)
    return [str(array.dtype), array.tolist()]


def _array(plain: list[Any]) -> Any:
    return np.asarray(plain[1], plain[0])
