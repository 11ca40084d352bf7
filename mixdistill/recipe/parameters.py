"""What a stage does with parameters and gradients beyond one loss: branches that are merged, conflicts taken out of
gradients, pilots; and which teachers are mixed at all. Plain data."""

import math
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from mixdistill.diagnostics.groups import THRESHOLD
from mixdistill.errors import UserError, unknown

Mode = Literal["exact", "sketch"]


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Merge-of-Thought rounds (arXiv:2509.08814): every teacher of the mixture trains a branch of its own from the same
    parameters, for `Mixture.turns` train steps with fresh optimiser moments; then

        merged = start + scale * sum_k w_k (branch_k - start),    w adds up to one

    and the next round starts there. The mean has equal `weights` (None) and scale 1; task arithmetic (arXiv:2212.04089)
    with coefficient c has scale c * K. The paper's steps a branch and rounds could not be read: no parity is claimed.
    The stage ends with a whole round: it may see up to a round more than its budget.
    """

    weights: Mapping[str, float] | None = None
    scale: float = 1.0

    def __post_init__(self):
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise UserError(f"merge scale is {self.scale}; it is positive and finite")


OWN_NLL = "own_nll"


@dataclass(frozen=True, kw_only=True)
class PilotMix:
    """Pilot-mix admission: from the same parameters every candidate trains a short-lived copy together with the anchor,
    for `Mixture.turns` train steps; later stages are without those turned away. The anchor is `Mixture.anchor`. The
    stage is one round long, whatever its budget says. A candidate is admitted if

        own NLL <= limit                         of its content, over the last quarter of its pilot and before each
                                                 batch is trained on, nats: it was learned
        accuracy >= control accuracy - slack     of the copy on the stage's held-out problems, answered when a pilot
                                                 ends: it hurts nobody

    The second holds where the stage has held-out problems, and `judge` names the one of their judges that says right
    (1) or wrong (0); the control is a first pilot of the anchor alone (`Mixture.control`). The run goes on from the
    admitted copy of the highest accuracy (without problems: of the lowest own NLL); if there is none, from the control,
    or where the stage began.

    Measured on procedural worlds: own NLL (60 train steps, 1 nat, an anchor at 0.15 nats at most) is right on one and
    wrong on the other. Pilots judged by accuracy have to be long enough for their teachers to be learned (120 train
    steps there; 60 were too few).
    """

    limit: float = 1.0
    slack: float = 0.05
    judge: str | None = None  # None: the only judge there is, own NLL alone without problems; "own_nll": in any case

    def __post_init__(self):
        if not (self.slack >= 0 and self.limit >= 0):
            raise UserError(f"pilots have limit {self.limit} and slack {self.slack}; neither is negative")

    def verifier(self, judges: Collection[str]) -> str | None:
        """Which of the stage's held-out `judges` tells right from wrong; None: own NLL alone decides. Raises
        `UserError` where that is open."""
        if self.judge == OWN_NLL or (self.judge is None and not judges):
            return None
        if self.judge is None and len(judges) > 1:
            raise UserError(
                f"pilots are judged by one of the held-out judges {', '.join(judges)}; name it: PilotMix(judge=...)"
            )
        if self.judge is not None and self.judge not in judges:
            raise unknown("judge of pilots", self.judge, (*judges, OWN_NLL))
        return self.judge or next(iter(judges))


@dataclass(frozen=True, kw_only=True)
class Compatible:
    """Admission by continuation conflict, before the first train step: of the teachers that the first stage may draw
    from, the best group without a conflicting pair (`diagnostics/groups.py`) is mixed in all stages, and the others are
    in none. It takes no student and no train step; tokens read and CPU seconds stand in the run's ledger.

    `prompts` state the target problems: a group is the better the more of them have a length that it has traces for.
    """

    prompts: tuple[str, ...] = ()  # without any, all lengths of the traces' own prompts count alike
    num_traces: int = 1000  # of each teacher; below 200 it fails
    threshold: float = THRESHOLD  # bits
    seed: int = 0  # of which traces

    def __post_init__(self):
        object.__setattr__(self, "prompts", tuple(self.prompts))
        if self.num_traces < 2:
            raise UserError(f"admission reads {self.num_traces} traces of each teacher; it needs at least 2")


@dataclass(frozen=True, kw_only=True)
class TeacherGradients:
    """Each teacher's own gradient in every train step: their cosines are counted, and conflicts may be projected out.

    PCGrad (arXiv:2001.06782): from each teacher's gradient takes its component against every other one that it opposes,
    in random order, then adds up. "exact" has one backward pass a teacher and holds that many gradients. "sketch"
    compares random projections of the gradient of a layer that would stand between the last hidden state and the
    vocabulary, which costs one more vocabulary pass whatever the number of teachers, and then weighs teachers in the
    one backward pass: PCGrad's result is a sum of the given gradients with coefficients >= 1.
    """

    mode: Mode = "sketch"
    project: bool = True  # False: cosines are counted, the gradient is the usual one
    towards: str | None = None  # the teacher whose gradient cosines are with; None: the sum of all others
    seed: int = 0

    def __post_init__(self):
        if self.mode not in typing.get_args(Mode):
            raise unknown("gradients mode", str(self.mode), typing.get_args(Mode))
