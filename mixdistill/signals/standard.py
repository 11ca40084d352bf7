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
    agreement.step_rank_surprisal,
    agreement.trace_difficulty,
    agreement.trace_local_naturalness,
    agreement.trace_headless_logprob,
    agreement.excess_loss,
    agreement.contradiction,
    confidence.token_confidence,
    confidence.step_mean_confidence,
    confidence.step_lowest_confidence,
    confidence.step_bottom_confidence,
    confidence.step_tail_confidence,
    confidence.step_teacher_logprob,
    confidence.trace_mean_confidence,
    confidence.trace_lowest_confidence,
    confidence.trace_bottom_confidence,
    confidence.trace_tail_confidence,
)
