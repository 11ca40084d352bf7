"""Length: leave out traces that are too short to reason or too long to be anything but rambling.

Length confounds every naturalness score, so a length gate belongs beside each as a control.
"""

import math

from jaxtyping import Array, Bool, Int

from mixdistill.signals.steps import run_sum


def length(
    valid: Bool[Array, "B T"], trace_run: Int[Array, "B T"], *, shortest: float = 0, longest: float = math.inf
) -> Bool[Array, "B T"]:
    """Keep a trace iff it has `shortest` to `longest` completion tokens, both included."""
    tokens = run_sum(valid, trace_run)
    return (tokens >= shortest) & (tokens <= longest)
