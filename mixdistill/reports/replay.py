"""What the gates of a run make of some traces, by its student as it is now: the recipe's own gates, read back from its
text. Nothing that the text names is imported but gates of this package."""

import ast
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from mixdistill import gates
from mixdistill.data.corpus import open_corpus
from mixdistill.data.mixture import Mixture
from mixdistill.data.packing import Place
from mixdistill.data.rows import read_rows
from mixdistill.errors import UserError
from mixdistill.losses import cross_entropy
from mixdistill.objective import Objective, Term, gate_values
from mixdistill.recipe.read import settings
from mixdistill.signals.signal import Bound, use
from mixdistill.traces.shards import Shards
from mixdistill.traces.tokenizer import content_ids
from mixdistill.training.workdir import Trained

ROWS = 8  # traces at a time
OURS = "mixdistill.gates."


@dataclasses.dataclass(frozen=True)
class Replayed:
    """`closed` is bool [completion tokens] of each trace number: what no term of the objective keeps."""

    closed: Mapping[int, np.ndarray]
    gates: tuple[str, ...]


def replay(text: str, trained: Trained, shards: Shards, numbers: Sequence[int]) -> Replayed | None:
    """The gates of the recipe's last objective; None where it has none. A quantile is taken over ROWS traces.

    Raises `UserError` for a gate that cannot be read back: one of yours, one that follows the train step, one that
    reads a running estimate or a field that is not in the shards.
    """
    terms = {name: tuple(_gates(text, path)) for name, path in _terms(text).items()}
    if not any(terms.values()):
        return None
    objective = Objective({name: Term(cross_entropy, gates=found) for name, found in terms.items()})
    objective = objective.with_teachers(trained.identity.teachers)
    longest = int(shards.index["num_tokens"][list(numbers)].max())
    closed: dict[int, np.ndarray] = {}
    for first in range(0, len(numbers), ROWS):
        closed |= _closed(objective, trained, shards, list(numbers[first : first + ROWS]), longest)
    return Replayed(closed, tuple(dict.fromkeys(gate.label for found in terms.values() for gate in found)))


def _closed(
    objective: Objective, trained: Trained, shards: Shards, numbers: list[int], length: int
) -> dict[int, np.ndarray]:
    mixture = Mixture(shards=str(shards.path), rows=len(numbers), length=length, too_long="truncate")
    content = content_ids(shards.tokenizer)
    batch = read_rows(
        open_corpus(mixture), content, [[Place(number, row, 0)] for row, number in enumerate(numbers)], length
    )
    given = {name: jnp.asarray(array) for name, array in batch.items()}
    found = gate_values(objective, trained.student, trained.params, given, train_step=trained.train_step)
    kept = np.zeros(batch["valid"].shape, bool)
    for name in objective.terms:
        factors = [np.asarray(value) > 0 for gate, value in found.items() if gate.startswith(f"{name}/")]
        kept |= np.all([*factors, batch["valid"]], axis=0)
    return {number: ~kept[row][batch["valid"][row]] for row, number in enumerate(numbers)}


def _terms(text: str) -> dict[str, str]:
    """Term -> its path, of the last stage that has an objective of its own."""
    paths = [path for path in settings(text) if ".objective.terms." in path and path.endswith(".loss")]
    last = max((path.split(".objective.")[0] for path in paths), key=lambda stage: int(stage.split(".")[1]), default="")
    return {path.split(".")[-2]: path.removesuffix(".loss") for path in paths if path.startswith(f"{last}.objective.")}


def _gates(text: str, term: str) -> Iterator[Bound]:
    found = settings(text)
    start = f"{term}.gates."
    for path, value in found.items():
        if path.startswith(start) and "." not in path.removeprefix(start):
            name = value.rpartition(":")[2]
            if not value.startswith(OURS) or not hasattr(gates, name):
                raise UserError(f"gate {value} is not one of mixdistill's own")
            below = {key.removeprefix(f"{path}."): text for key, text in found.items() if key.startswith(f"{path}.")}
            yield use(getattr(gates, name), **{key: _plain(name, key, given) for key, given in below.items()})


def _plain(gate: str, knob: str, text: str):
    try:
        return float(text) if text in ("inf", "-inf", "nan") else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise UserError(f"gate {gate} has {knob} = {text}, which is no plain value") from None
