"""Position: the host's part of a checkpoint. A few kilobytes of JSON, equal on all processes."""

import dataclasses
from typing import Any

from mixdistill.optimizers import Budget
from mixdistill.training.batches import Batches


@dataclasses.dataclass(frozen=True)
class Position:
    """How far a run is. The stage in force and the batch that comes next follow from it."""

    stage: int = 0  # index
    train_step: int = 0  # done in all
    tokens: int = 0  # targets seen in all
    stage_train_steps: int = 0  # done in this stage
    stage_tokens: int = 0
    seconds: float = 0.0  # spent in all, by this process and those before it
    pipeline: dict[str, Any] | None = None  # state of the stage's pipeline; None: at its start
    handover: dict[str, Any] | None = None  # what the stage's hand-over rules have seen; None: nothing yet
    guard: dict[str, Any] | None = None  # what the guard has seen and decided; None: nothing yet
    pending: dict[str, Any] | None = None  # of the last train step, whose held-out problems a signal left unanswered
    window: dict[str, Any] | None = None  # tallies since the last line of the metrics, where a signal cut it short
    ended: tuple[dict[str, Any], ...] = ()  # the stages before: their name, their last train step, and why there

    @property
    def recorded(self) -> int:
        """The last train step that has its lines in the ledger."""
        return self.train_step - (self.pending is not None)

    @property
    def logged(self) -> int:
        """The last train step that has its line in the metrics, and will have it however the run goes on."""
        return self.recorded if self.window is None else self.window["after"]

    def after(self, tokens: int) -> "Position":
        """One train step further, which saw `tokens` targets."""
        return dataclasses.replace(
            self,
            train_step=self.train_step + 1,
            tokens=self.tokens + tokens,
            stage_train_steps=self.stage_train_steps + 1,
            stage_tokens=self.stage_tokens + tokens,
        )

    def next_stage(self, name: str, reason: str) -> "Position":
        """At the start of the stage after this one, whose name is given and why it ended here ("": its budget)."""
        ended = {"stage": name, "train_step": self.train_step, "reason": reason or "budget"}
        fresh = {"stage_train_steps": 0, "stage_tokens": 0, "pipeline": None, "handover": None}
        return dataclasses.replace(self, stage=self.stage + 1, ended=(*self.ended, ended), **fresh)

    def at(self, pipeline: Batches, handover: dict[str, Any]) -> "Position":
        """With where the pipeline is and what the hand-over rules have seen."""
        return dataclasses.replace(self, pipeline=pipeline.get_state(), handover=handover)

    def spends(self, budget: Budget) -> bool:
        """True once the stage has used up its budget."""
        return (self.stage_tokens if budget.unit == "tokens" else self.stage_train_steps) >= budget.size

    def to_json(self) -> dict[str, Any]:
        """JSON values; `from_json` inverts it."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(found: dict[str, Any]) -> "Position":
        """What `to_json` wrote."""
        return Position(**{**found, "ended": tuple(found["ended"])})
