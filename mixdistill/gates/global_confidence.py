"""Global-confidence gate: mask whole traces by their mean confidence. The baseline that step gates must beat."""

from jaxtyping import Array, Bool, Float, Int

from mixdistill.signals.steps import batch_wide, run_start
from mixdistill.signals.steps import quantile as value_at


@batch_wide
def global_confidence(
    trace_mean_confidence: Float[Array, "B T"],
    valid: Bool[Array, "B T"],
    trace_run: Int[Array, "B T"],
    *,
    quantile: float = 0.1,
    at_least: float = float("-inf"),
) -> Bool[Array, "B T"]:
    """Close the least confident share `quantile` of the traces, and every trace below `at_least` nats.

    Every trace counts once (arXiv:2508.15260, "average trace confidence", the student's own). The quantile is taken
    over the microbatch; 0 switches it off.
    """
    limit = value_at(trace_mean_confidence, run_start(trace_run, valid), quantile)
    return (trace_mean_confidence >= limit) & (trace_mean_confidence >= at_least)
