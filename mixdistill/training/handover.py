"""When a stage ends early: rules on tallies, decided at a fixed distance so that resuming changes nothing."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mixdistill.objective import Tally
from mixdistill.recipe.handover import Rule

# Train steps from the tallies that a rule has seen to the last train step of the stage. They arrive when the next train
# step was dispatched already; before a checkpoint they arrive at once, and that must not make a difference.
LEAD = 1


class Handover:
    """The rules of one stage, and what they have seen."""

    def __init__(self, rules: tuple[Rule, ...], state: Mapping[str, Any] | None):
        """`state` as `to_json` gave it; None at the start of the stage."""
        self._rules = rules
        state = state or {"seen": [[] for _ in rules], "ends_at": None, "reason": ""}
        self._seen, self._ends_at, self.reason = list(state["seen"]), state["ends_at"], state["reason"]

    def observe(self, stage_train_steps: int, tallies: Mapping[str, Tally]) -> None:
        """Tallies (numpy) of the train step with which the stage had done so many."""
        for number, rule in enumerate(self._rules):
            value = _mean(tallies.get(rule.tally))
            if value is None:
                continue
            self._seen[number], over = rule.after(self._seen[number], value)
            if over and self._ends_at is None:
                self._ends_at, self.reason = stage_train_steps + LEAD, f"{rule} at {value:.6g}"

    def due(self, stage_train_steps: int) -> bool:
        """Whether the stage is over after so many train steps."""
        return self._ends_at is not None and stage_train_steps >= self._ends_at

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {"seen": self._seen, "ends_at": self._ends_at, "reason": self.reason}


def _mean(tally: Tally | None) -> float | None:
    """None where there is no number."""
    if tally is None or not np.all(tally.weight > 0) or np.ndim(tally.sum) > 0:
        return None
    value = float(tally.sum) / float(tally.weight)
    return value if np.isfinite(value) else None
