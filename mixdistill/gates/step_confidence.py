"""Step-confidence gate: mask the reasoning steps in which the student is least sure (after arXiv:2508.15260).

DeepConf scores generated traces; using the student's own confidence as a training mask, step by step, is our
extension, and it was not better than the whole-trace gate on traces of 5 to 9 tokens.
"""

from jaxtyping import Array, Bool, Float, Int

from mixdistill.signals.steps import batch_wide, run_start
from mixdistill.signals.steps import quantile as value_at


@batch_wide
def step_confidence(
    step_mean_confidence: Float[Array, "B T"],
    valid: Bool[Array, "B T"],
    step_run: Int[Array, "B T"],
    *,
    quantile: float = 0.1,
    at_least: float = float("-inf"),
) -> Bool[Array, "B T"]:
    """Close the least confident share `quantile` of the reasoning steps, and every step below `at_least` nats.

    Every step counts once, whatever its length. `use(step_confidence, step_mean_confidence=step_lowest_confidence)`
    judges a step by its lowest window. The quantile is taken over the microbatch; 0 switches it off.
    """
    limit = value_at(step_mean_confidence, run_start(step_run, valid), quantile)
    return (step_mean_confidence >= limit) & (step_mean_confidence >= at_least)
