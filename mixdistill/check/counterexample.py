"""The smallest case in which a property does not hold."""

import random
from collections.abc import Callable
from typing import Any

from mixdistill.check.traces import LENGTH, LONGEST, NUM_TRACES
from mixdistill.errors import UserError

try:
    import hypothesis
    from hypothesis import strategies as st
    from hypothesis.errors import NoSuchExample
except ImportError as error:
    raise UserError("checking a loss needs hypothesis; install it: pip install 'mixdistill[dev]'") from error

SETTINGS = {
    "deadline": None,
    "database": None,
    "suppress_health_check": list(hypothesis.HealthCheck),
    "phases": [hypothesis.Phase.generate, hypothesis.Phase.shrink],
}

# Token None is the whole trace: the case that empties a denominator.
PLACE = st.tuples(st.integers(0, NUM_TRACES - 1), st.none() | st.integers(0, LONGEST - 1))
PLACES = st.frozensets(PLACE, min_size=1, max_size=4)
MASKS = st.frozensets(st.tuples(st.sampled_from(["valid", "content", "check_open"]), PLACE), min_size=1, max_size=6)
JOINED = st.lists(st.booleans(), min_size=NUM_TRACES - 1, max_size=NUM_TRACES - 1)
ORDERS = st.permutations(range(NUM_TRACES))
GAPS = st.lists(st.integers(0, LENGTH - LONGEST), min_size=NUM_TRACES, max_size=NUM_TRACES)


def search(cases: st.SearchStrategy, wrong: Callable[[Any], str | None], num_examples: int) -> tuple[Any, str] | None:
    """The smallest case that hypothesis finds for which `wrong` says something, and what it says; None if there is
    none among `num_examples` random ones (the same at every call)."""
    settings = hypothesis.settings(max_examples=num_examples, **SETTINGS)
    try:
        case = hypothesis.find(cases, lambda c: wrong(c) is not None, settings=settings, random=random.Random(0))
    except NoSuchExample:
        return None
    return case, wrong(case) or ""


def say(places: Any) -> str:
    """Pairs (trace, token) in words."""
    words = [f"trace {trace}" + ("" if token is None else f" token {token}") for trace, token in _sorted(places)]
    return ", ".join(words)


def _sorted(places: Any) -> list[tuple[int, int | None]]:
    return sorted(places, key=lambda place: (place[0], -1 if place[1] is None else place[1]))
