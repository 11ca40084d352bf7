"""The guard of a run: from tallies of train steps to strikes, quarantine, rollback, alarms and an end in good order.

Everything it knows is JSON in the position, so it resumes with the run and a rollback does not make it forget. It sees
tallies only, which are equal on all processes, and what it decides takes effect a fixed number of train steps later:
the same run decides the same, however often it is interrupted.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mixdistill.objective import Tally
from mixdistill.recipe.guard import Alarm, Guard
from mixdistill.training.position import Position
from mixdistill.training.spikes import LOSS_FLOOR, NORM_FLOOR, Usual

# Train steps from the tallies that ask for a rollback to the rollback, as for hand-over: they arrive one later.
LEAD = 1
ROUNDING = 1e-6  # counts of tokens come as float32
Tallies = Mapping[str, Tally]
Decision = dict[str, Any]  # "event", "train_step", and what belongs to it: JSON


class Watch:
    """Observes a run by the rules of its `Guard`."""

    def __init__(self, rules: Guard, teachers: tuple[str, ...], state: Mapping[str, Any] | None):
        """`state` as `to_json` gave it; None at the start of a run."""
        self._rules, self._teachers = rules, teachers
        state = state or {}
        self.closed: dict[str, dict[str, float]] = dict(state.get("closed", {}))  # in quarantine: since when, weight
        self.good: int | None = state.get("good")  # train step of the checkpoint that a rollback goes to
        self.best: list[float] | None = state.get("best")  # [held-out accuracy, train step of its checkpoint]
        self.stopped: str = state.get("stopped", "")  # why the run is over before its end
        self._score: float | None = state.get("score")
        self._rolls_back_at: int | None = state.get("rolls_back_at")
        self._strikes = [(at, name) for at, name in state.get("strikes", [])]
        self._skipped: int = state.get("skipped", 0)
        self._damaged = list(state.get("damaged", []))
        self._stage: int = state.get("stage", 0)
        self._usual, self._alarms = {}, {}
        self._begin_stage(state.get("usual", {}), state.get("alarms", {}))

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "closed": self.closed,
            "good": self.good,
            "best": self.best,
            "stopped": self.stopped,
            "score": self._score,
            "rolls_back_at": self._rolls_back_at,
            "strikes": self._strikes,
            "skipped": self._skipped,
            "damaged": self._damaged,
            "stage": self._stage,
            "usual": {name: usual.values for name, usual in self._usual.items()},
            "alarms": {name: memory.to_json() for name, memory in self._alarms.items()},
        }

    @property
    def pinned(self) -> tuple[int, ...]:
        """Train steps whose checkpoints stay, however old."""
        return tuple(int(step) for step in (self.good, self.best[1] if self.best else None) if step)

    @property
    def skipped(self) -> int:
        """Train steps lost so far."""
        return self._skipped

    def observe(
        self, position: Position, tallies: Tallies, weights: Mapping[str, float], planned: int | None
    ) -> list[Decision]:
        """What the tallies (numpy) of the train step before `position` lead to. `weights` are the shares of the mixture
        that are to come (empty: there is no mixture); `planned` the targets that its plan held (None: unknown)."""
        if position.stage != self._stage:
            self._stage = position.stage
            self._begin_stage({}, {})
        step = position.train_step
        decisions = [*self._strike(step, tallies), *self._alarm(step, tallies), *self._count(step, tallies, planned)]
        decisions += [*self._readmit(step), *self._quarantine(step, weights), *self._ask_rollback(step)]
        if self._skipped > self._rules.max_skipped and not self.stopped:
            most = self._rules.max_skipped
            self.stopped = f"{self._skipped} train steps were lost, more than guard.max_skipped={most}"
            decisions.append({"event": "stop", "train_step": step, "reason": self.stopped})
        if (accuracy := _accuracy(tallies)) is not None:
            self._score = accuracy
        return decisions

    def rolls_back(self, train_step: int) -> bool:
        """Whether a rollback is due now."""
        return self._rolls_back_at is not None and train_step >= self._rolls_back_at

    def rolled_back(self, train_step: int) -> Decision:
        """The state is that of the good checkpoint again (the start, if there is none)."""
        to = self.good or 0
        lost = train_step - to
        self._skipped, self._strikes, self._rolls_back_at = self._skipped + lost, [], None
        return {"event": "rollback", "train_step": train_step, "to": to}

    def ask_rollback(self, train_step: int, at: int, why: str) -> Decision:
        """After train step `at`; decided after `train_step`."""
        self._rolls_back_at = at
        return {"event": "rollback asked", "train_step": train_step, "at": at, "reason": why}

    def checkpoint(self, train_step: int, finite: bool) -> None:
        """A checkpoint of a regular train step is being saved: it is the one to go back to if all is well."""
        if finite and self._calm(train_step):
            self.good = train_step
        if finite and self._score is not None and (self.best is None or self._score >= self.best[0]):
            self.best = [self._score, train_step]

    def forgive(self, names: tuple[str, ...], train_step: int) -> list[Decision]:
        """A person lets teachers back in ("all": every one), and strikes and skipped train steps be forgotten."""
        wanted = [name for name in self.closed if name in names or "all" in names]
        self._strikes, self._skipped, self.stopped = [], 0, ""
        return [self._open(name, train_step, "asked for") for name in wanted]

    def _begin_stage(self, usual: Mapping[str, list[float]], alarms: Mapping[str, Any]) -> None:
        rules = self._rules
        floors = {name: LOSS_FLOOR for name in self._teachers} | {"": NORM_FLOOR}  # "": the gradient's norm
        self._usual = {
            name: Usual(rules.window, rules.warm_up, floor, usual.get(name)) for name, floor in floors.items()
        }
        named = {f"{one.tally} {one.side}": one for one in rules.alarms}
        self._alarms = {key: _Memory(one, alarms.get(key)) for key, one in named.items()}

    def _strike(self, step: int, tallies: Tallies) -> list[Decision]:
        if "optimizer/skipped" not in tallies:
            return []
        skipped = float(tallies["optimizer/skipped"].sum) > 0
        if skipped and float(tallies["no_data"].sum) > 0:
            return []  # gates that close everything are no accident
        losses = _by_teacher(tallies.get("teacher/nll"), self._teachers)
        z = {name: self._usual[name].z(value) for name, value in losses.items()}
        spiking = [name for name, value in z.items() if value > self._rules.threshold]
        norm = float(tallies["optimizer/grad_norm"].sum)
        norm_z = self._usual[""].z(norm) if np.isfinite(norm) else np.inf
        for name in losses.keys() - set(spiking):
            self._usual[name].add(losses[name])
        if skipped:
            self._skipped += 1
            # Without a token to blame it is the teacher who stands out, if there is one.
            guilty = _nonfinite(tallies, self._teachers) or spiking
            decision = {"event": "nonfinite", "teachers": guilty}
        elif spiking or norm_z > self._rules.threshold:
            guilty = spiking or _outstanding(z)
            decision = {"event": "spike", "teachers": guilty, "z": {name: round(z[name], 2) for name in guilty}}
            decision |= {"gradient_z": round(norm_z, 2)}
        else:
            self._usual[""].add(norm)
            return []
        self._strikes += [(step, name) for name in guilty or [""]]
        return [{"train_step": step, **decision}]

    def _recent(self, step: int) -> list[tuple[int, str]]:
        self._strikes = [one for one in self._strikes if step - one[0] < self._rules.memory]
        return self._strikes

    def _quarantine(self, step: int, weights: Mapping[str, float]) -> list[Decision]:
        found = []
        for name in self._teachers if self._rules.quarantine_after else ():
            count = sum(guilty == name for _, guilty in self._recent(step))
            open_weights = {t: w for t, w in weights.items() if w > 0 and t not in self.closed}
            if count < self._rules.quarantine_after or name not in open_weights or len(open_weights) < 2:
                continue
            self.closed[name] = {"since": step, "weight": open_weights[name]}
            found.append({"event": "quarantine", "train_step": step, "teacher": name, "strikes": count})
        return found

    def _readmit(self, step: int) -> list[Decision]:
        rules = self._rules
        due = [
            name
            for name, one in self.closed.items()
            if rules.probation is not None and step >= one["since"] + rules.probation
        ]
        return [self._open(name, step, f"after {rules.probation} train steps") for name in due]

    def _open(self, name: str, step: int, why: str) -> Decision:
        weight = self.closed.pop(name)["weight"]
        self._strikes = [one for one in self._strikes if one[1] != name]
        return {"event": "readmit", "train_step": step, "teacher": name, "weight": weight, "reason": why}

    def _ask_rollback(self, step: int) -> list[Decision]:
        at = {at for at, name in self._recent(step) if name not in self.closed}
        if self.good is None:
            return []  # back to the start is no remedy: all would be lost
        if not self._rules.rollback_after or len(at) < self._rules.rollback_after or self._rolls_back_at is not None:
            return []
        return [self.ask_rollback(step, step + LEAD, f"{len(at)} train steps with strikes")]

    def _alarm(self, step: int, tallies: Tallies) -> list[Decision]:
        """Once when it starts, not for every train step that it lasts."""
        found = []
        for memory in self._alarms.values():
            value = _mean(tallies.get(memory.alarm.tally))
            if value is not None and memory.starts(value):
                alarm = dataclasses.asdict(memory.alarm)
                found.append({"event": "alarm", "train_step": step, "value": round(memory.mean, 6), **alarm})
        return found

    def _count(self, step: int, tallies: Tallies, planned: int | None) -> list[Decision]:
        """Targets that were planned and did not come: of records that could not be read."""
        if planned is None or "tokens" not in tallies:
            return []
        missing = planned - round(float(tallies["tokens"].sum))
        missing = missing if missing > planned * ROUNDING else 0
        self._damaged = [*self._damaged, [missing, planned]][-self._rules.window :]
        lost, of = np.sum(self._damaged, 0).tolist()
        if lost > self._rules.max_damaged * of and len(self._damaged) == self._rules.window and not self.stopped:
            self.stopped = f"damaged records cost {lost} of the last {of} targets; mixdistill doctor SHARDS names them"
            return [{"event": "stop", "train_step": step, "reason": self.stopped}]
        return [{"event": "damaged", "train_step": step, "targets": missing}] if missing else []

    def _calm(self, train_step: int) -> bool:
        return self._rolls_back_at is None and not any(
            train_step - at < self._rules.warm_up and name not in self.closed for at, name in self._strikes
        )


class _Memory:
    """What an alarm has seen."""

    def __init__(self, alarm: Alarm, state: Mapping[str, Any] | None):
        state = state or {"first": [], "last": [], "on": False}
        self.alarm, self._first, self._last, self._on = alarm, list(state["first"]), list(state["last"]), state["on"]

    def to_json(self) -> dict[str, Any]:
        return {"first": self._first, "last": self._last, "on": self._on}

    @property
    def mean(self) -> float:
        return float(np.mean(self._last))

    def starts(self, value: float) -> bool:
        """Whether the alarm goes on with this value."""
        window = self.alarm.window
        if self.alarm.of == "start" and len(self._first) < window:
            self._first.append(value)
            return False
        self._last = [*self._last, value][-window:]
        limit = self.alarm.limit * (float(np.mean(self._first)) if self.alarm.of == "start" else 1.0)
        crossed = self.mean < limit if self.alarm.side == "below" else self.mean > limit
        before, self._on = self._on, crossed and len(self._last) == window
        return self._on and not before


def _by_teacher(tally: Tally | None, teachers: tuple[str, ...]) -> dict[str, float]:
    """The finite means of teachers with data."""
    if tally is None:
        return {}
    pairs = zip(teachers, np.atleast_1d(tally.sum), np.atleast_1d(tally.weight), strict=True)
    means = {name: float(total) / float(weight) for name, total, weight in pairs if weight > 0}
    return {name: value for name, value in means.items() if np.isfinite(value)}


def _nonfinite(tallies: Tallies, teachers: tuple[str, ...]) -> list[str]:
    """Teachers with a token whose log-probability or loss is not finite."""
    found = [tally.sum for name, tally in tallies.items() if name.startswith("teacher/nonfinite")]
    return [name for k, name in enumerate(teachers) if any(np.atleast_1d(counts)[k] > 0 for counts in found)]


def _outstanding(z: Mapping[str, float]) -> list[str]:
    """Whom a jump of the gradient is charged to: who stands out most by loss, beyond doubt."""
    name = max(z, key=lambda teacher: z[teacher], default=None)
    return [name] if name is not None and z[name] > 3 else []


def _accuracy(tallies: Tallies) -> float | None:
    """The mean over the held-out judges."""
    skip = ("held_out/length", "held_out/ended")
    found = [_mean(tally) for name, tally in tallies.items() if name.startswith("held_out/") and name not in skip]
    known = [value for value in found if value is not None]
    return float(np.mean(known)) if known else None


def _mean(tally: Tally | None) -> float | None:
    if tally is None or np.ndim(tally.sum) > 0 or not tally.weight > 0:
        return None
    value = float(tally.sum) / float(tally.weight)
    return value if np.isfinite(value) else None
