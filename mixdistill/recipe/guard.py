"""How a run protects itself from one bad teacher, one bad batch, or its own collapse. Plain data."""

import dataclasses
from typing import Literal

from mixdistill.errors import UserError


@dataclasses.dataclass(frozen=True)
class Alarm:
    """Speaks when the mean of a tally over `window` train steps that have it crosses `limit`.

    `of` "value": the mean itself; "start": its share of the first `window` train steps of the stage.
    """

    tally: str
    side: Literal["below", "above"]
    limit: float
    of: Literal["value", "start"] = "value"
    window: int = 10

    def __post_init__(self):
        if self.window < 1:
            raise UserError(f"the window of alarm {self.tally!r} is {self.window}; it takes at least 1 train step")


# What a collapse shows first. A tally that a stage does not make raises no alarm.
ALARMS = (
    Alarm("rollout/nll", "below", 0.1, of="start"),  # entropy: one answer to everything
    Alarm("rollout/length", "below", 0.2, of="start"),
    Alarm("rollout/length", "above", 4.0, of="start"),
    Alarm("rollout/repeated", "above", 0.5),
    Alarm("kept", "below", 0.02),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guard:
    """Strikes, and what follows from them. A strike is a train step whose loss or gradient is not finite, or a spike.

    A spike is a teacher's NLL, or the norm of the gradient, `threshold` robust standard deviations (1.4826 MAD) above
    its median over the last `window` train steps without one, once there are `warm_up` of them in the stage. 0 in
    `quarantine_after` or `rollback_after` turns that off. Raises `UserError` for numbers that make no sense.
    """

    warm_up: int = 32  # train steps in which a teacher had data
    window: int = 64
    threshold: float = 8.0
    quarantine_after: int = 3  # strikes of one teacher within 2 windows: its weight goes to zero
    probation: int | None = None  # train steps after which it comes back; None: when a person says so
    # Strikes within 2 windows of teachers that are not in quarantine, or of nobody. Norms of a student that nearly fits
    # its data jump by themselves, a dozen times in 100 train steps; a run that breaks jumps in all of them.
    rollback_after: int = 32
    max_skipped: int = 100  # train steps lost to numbers that are not finite and to rollbacks; then the run stops
    max_damaged: float = 0.02  # share of a window's targets that damaged records may cost; then the run stops
    alarms: tuple[Alarm, ...] = ALARMS

    def __post_init__(self):
        if not 2 <= self.warm_up <= self.window:
            raise UserError(f"guard warm_up is {self.warm_up}; it is from 2 to the window, {self.window}")
        for name in ("threshold", "max_damaged"):
            if getattr(self, name) <= 0:
                raise UserError(f"guard {name} is {getattr(self, name)}; it must be positive")
        for name in ("quarantine_after", "rollback_after", "max_skipped"):
            if getattr(self, name) < 0:
                raise UserError(f"guard {name} is {getattr(self, name)}; it is at least 0")
        if self.probation is not None and self.probation < 1:
            raise UserError(f"guard probation is {self.probation}; it is at least 1 train step, or None")

    @property
    def memory(self) -> int:
        """Train steps for which a strike counts."""
        return 2 * self.window
