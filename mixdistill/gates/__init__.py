"""Gates: one file each, a pure function of signals that gives a factor >= 0 per token, `[B, T]`.

Gates are multiplied and never differentiated; where one is closed nothing flows. Coverage is logged per term, gate and
teacher. Every knob may follow the train step (`Scheduled`), and every signal that a gate reads may be another one
(`use(worst_token, worst_surprisal=mine)`); `at_most`, `at_least`, `soft_at_most` and `lowest_traces` make a gate of
any score. What a gate refuses is drawn from other teachers by `mixdistill.routers.acceptance`, and where gates close a
whole batch `Objective(fallback=...)` learns from one teacher.

Compatibility gates (worst_token, mean_surprisal, rank_surprisal, near_anchor, near_own_mean, difficulty,
local_naturalness, aslec, compact) judge a trace by its likelihood under the student, and mis-rank teachers whose forms
conflict: shared surface makes a conflict look compatible. Each file says how; none is a default.
"""

from mixdistill.gates.aslec import aslec
from mixdistill.gates.at_least import at_least
from mixdistill.gates.at_most import at_most
from mixdistill.gates.compact import compact
from mixdistill.gates.correct import correct
from mixdistill.gates.dft import dft
from mixdistill.gates.difficulty import difficulty
from mixdistill.gates.entropy_weight import entropy_weight
from mixdistill.gates.global_confidence import global_confidence
from mixdistill.gates.has_teacher_topk import has_teacher_topk
from mixdistill.gates.high_entropy import high_entropy
from mixdistill.gates.length import length
from mixdistill.gates.local_naturalness import local_naturalness
from mixdistill.gates.lowest_traces import lowest_traces
from mixdistill.gates.mean_surprisal import mean_surprisal
from mixdistill.gates.near_anchor import near_anchor
from mixdistill.gates.near_own_mean import near_own_mean
from mixdistill.gates.no_contradiction import no_contradiction
from mixdistill.gates.paced import paced
from mixdistill.gates.rank_surprisal import rank_surprisal
from mixdistill.gates.rho1 import rho1
from mixdistill.gates.routed import distilled, reinforced
from mixdistill.gates.seam import seam
from mixdistill.gates.sequence_mean import sequence_mean
from mixdistill.gates.soft_at_most import soft_at_most
from mixdistill.gates.step_confidence import step_confidence
from mixdistill.gates.sure_tokens import sure_tokens
from mixdistill.gates.t3s import t3s
from mixdistill.gates.teacher_confidence import teacher_confidence
from mixdistill.gates.teacher_weight import teacher_weight
from mixdistill.gates.worst_token import worst_token

__all__ = [
    "aslec",
    "at_least",
    "at_most",
    "compact",
    "correct",
    "dft",
    "difficulty",
    "distilled",
    "entropy_weight",
    "global_confidence",
    "has_teacher_topk",
    "high_entropy",
    "length",
    "local_naturalness",
    "lowest_traces",
    "mean_surprisal",
    "near_anchor",
    "near_own_mean",
    "no_contradiction",
    "paced",
    "rank_surprisal",
    "reinforced",
    "rho1",
    "seam",
    "sequence_mean",
    "soft_at_most",
    "step_confidence",
    "sure_tokens",
    "t3s",
    "teacher_confidence",
    "teacher_weight",
    "worst_token",
]
