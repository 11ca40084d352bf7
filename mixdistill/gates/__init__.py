"""Gates: one file each, a pure function of signals that gives a factor >= 0 per token, `[B, T]`.

Gates are multiplied and never differentiated; where one is closed nothing flows. Coverage is logged per term, gate and
teacher. Compatibility gates (worst_token, mean_surprisal, rank_surprisal, near_anchor, near_own_mean) judge a trace by
its likelihood under the student, and all of them mis-rank teachers whose forms conflict: each file says how.
"""

from mixdistill.gates.global_confidence import global_confidence
from mixdistill.gates.mean_surprisal import mean_surprisal
from mixdistill.gates.near_anchor import near_anchor
from mixdistill.gates.near_own_mean import near_own_mean
from mixdistill.gates.no_contradiction import no_contradiction
from mixdistill.gates.rank_surprisal import rank_surprisal
from mixdistill.gates.step_confidence import step_confidence
from mixdistill.gates.teacher_weight import teacher_weight
from mixdistill.gates.worst_token import worst_token

__all__ = [
    "global_confidence",
    "mean_surprisal",
    "near_anchor",
    "near_own_mean",
    "no_contradiction",
    "rank_surprisal",
    "step_confidence",
    "teacher_weight",
    "worst_token",
]
