"""Runs every property over a loss, a gate or a whole objective, and says what was found."""

from collections.abc import Callable
from typing import Any, NamedTuple

from mixdistill.check.bench import Bench
from mixdistill.check.properties import PROPERTIES, Skip
from mixdistill.errors import UserError
from mixdistill.losses import cross_entropy
from mixdistill.objective import Objective, Term
from mixdistill.signals.signal import Bound, Signal


class Finding(NamedTuple):
    """One property of one function. `passed` is None where it is not defined for it; `detail` then says why."""

    name: str
    passed: bool | None
    detail: str = ""


def check_loss(loss: Signal | Bound, *, num_examples: int = 25, **options: Any) -> list[Finding]:
    """The battery for a loss. `options` of the `Objective` (memory, signals, fields) as the loss needs them."""
    return check_objective(lambda: Objective({"checked": Term(loss)}, **options), num_examples=num_examples)


def check_gate(gate: Signal | Bound, *, num_examples: int = 25, **options: Any) -> list[Finding]:
    """The battery for a gate, on cross entropy."""
    terms = {"checked": Term(cross_entropy)}
    return check_objective(
        lambda: Objective({"checked": Term(terms["checked"].loss, gates=(gate,))}, **options), num_examples=num_examples
    )


def check_objective(build: Callable[[], Objective] | Objective, *, num_examples: int = 25) -> list[Finding]:
    """Every property in order; "builds" alone if that fails. `num_examples` random cases are tried where cases differ,
    and one that fails is shrunk."""
    try:
        bench = Bench(build() if callable(build) else build, num_examples)
    except UserError as error:
        return [Finding("builds", False, str(error))]
    return [Finding("builds", True), *(try_property(check, bench) for check in PROPERTIES)]


def try_property(check: Callable[[Bench], str | None], bench: Bench) -> Finding:
    """What one property says of the objective on the bench."""
    name = check.__name__.replace("_", " ")
    try:
        said = check(bench)
    except AssertionError as error:
        return Finding(name, False, str(error))
    except Exception as error:  # noqa: BLE001 - a stranger's function may raise anything, and that is a finding
        return Finding(name, False, f"raised {type(error).__name__}: {str(error).strip().splitlines()[0]}")
    return Finding(name, None if isinstance(said, Skip) else True, said or "")
