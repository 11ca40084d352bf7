"""Losses: one file each, a pure function of signals that gives nats per token, `[B, T]`.

Masking, gating, weights, schedules, accumulation and reduction belong to the Objective.
"""

from mixdistill.losses.cross_entropy import cross_entropy

__all__ = ["cross_entropy"]
