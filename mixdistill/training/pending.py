"""The tallies of a train step that cannot be reported yet, as JSON in the position: its held-out problems are not
answered, because a signal came first. They are when the run goes on, and all is as if it had never been interrupted."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mixdistill.objective import Tally
from mixdistill.training.report import Tallies

Batch = tuple[Sequence[int], int | None]  # its traces, and the targets planned


def write(tallies: Tallies, batch: Batch) -> dict[str, Any]:
    """JSON values; float32 and float64 come back to the bit."""
    found = jax.device_get(dict(tallies))
    pairs = {name: [_plain(tally.sum), _plain(tally.weight)] for name, tally in found.items()}
    return {"tallies": pairs, "traces": list(map(int, batch[0])), "planned": batch[1]}


def read(pending: dict[str, Any]) -> tuple[dict[str, Tally], Batch]:
    """Inverts `write`."""
    tallies = {name: Tally(*map(_array, pair)) for name, pair in pending["tallies"].items()}
    return tallies, (pending["traces"], pending["planned"])


def _plain(array: Any) -> list[Any]:
    array = np.asarray(array)
    return [str(array.dtype), array.tolist()]


def _array(plain: list[Any]) -> Any:
    return np.asarray(plain[1], plain[0])
