"""What a stage does with parameters and gradients beyond one loss: branches that are merged, conflicts taken out of
gradients, pilots. Plain data."""

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

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


@dataclass(frozen=True, kw_only=True)
class PilotMix:
    """Pilot-mix admission: from the same parameters every candidate trains a short-lived copy together with the anchor,
    for `Mixture.turns` train steps. A candidate is admitted if its own content NLL, over the last quarter of its pilot
    and before each batch is trained on, is at most `limit` nats. The run goes on from the copy of the best of those
    admitted, or from the start of the stage if there is none; later stages are without those turned away. The anchor is
    `Mixture.anchor`. The stage is one round long, whatever its budget says.

    Measured (60 train steps, 1 nat, an anchor at 0.15 nats at most) on one procedural world.
    """

    limit: float = 1.0


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
