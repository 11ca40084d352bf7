"""The derived signals that every objective knows without being told. Add your own with `Objective(signals=...)`."""

from mixdistill.signals import agreement, confidence, steps

STANDARD = (
    steps.trace_run,
    steps.step_run,
    agreement.surprisal,
    agreement.worst_surprisal,
    agreement.trace_surprisal,
    agreement.step_surprisal,
    agreement.trace_rank_surprisal,
    agreement.contradiction,
    confidence.token_confidence,
    confidence.step_mean_confidence,
    confidence.step_lowest_confidence,
    confidence.trace_mean_confidence,
    confidence.trace_lowest_confidence,
)
