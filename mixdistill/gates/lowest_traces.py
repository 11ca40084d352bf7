"""Any score of traces as a quantile gate: `use(lowest_traces, score=trace_surprisal, keep=0.5)`.

A quantile always keeps something, of a bad pool too: measured on a pool of conflicting teachers, one annealed from 0.9
to 0.3 kept whatever had the most predictable filler.
"""

from jaxtyping import Array, Bool, Float, Int

from mixdistill.signals.steps import batch_wide, quantile, run_start


@batch_wide
def lowest_traces(
    score: Float[Array, "B T"], valid: Bool[Array, "B T"], trace_run: Int[Array, "B T"], *, keep: float
) -> Bool[Array, "B T"]:
    """Open the share `keep` of the microbatch's traces that have the lowest score, rounded up; every trace counts once.

    `score` is one number a trace, repeated over its tokens. For the highest give it the score's negative.
    """
    return -score >= quantile(-score, run_start(trace_run, valid), 1 - keep)
