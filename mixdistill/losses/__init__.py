"""Losses: one file each, a pure function of signals that gives nats per token, `[B, T]`.

Masking, gating, weights, schedules, accumulation and reduction belong to the Objective.
"""

from mixdistill.losses.cross_entropy import cross_entropy
from mixdistill.losses.forward_kl import forward_kl
from mixdistill.losses.jsd import jsd
from mixdistill.losses.label_smoothing import label_smoothing
from mixdistill.losses.policy_gradient import (
    k3_kl,
    policy_gradient,
    reverse_kl_gradient,
    truncated_policy_gradient,
)
from mixdistill.losses.reverse_kl import reverse_kl
from mixdistill.losses.skew_kl import skew_kl
from mixdistill.losses.step_contrast import step_contrast
from mixdistill.losses.topk_reverse_kl import topk_reverse_kl
from mixdistill.losses.z_loss import z_loss

__all__ = [
    "cross_entropy",
    "forward_kl",
    "jsd",
    "k3_kl",
    "label_smoothing",
    "policy_gradient",
    "reverse_kl",
    "reverse_kl_gradient",
    "skew_kl",
    "step_contrast",
    "topk_reverse_kl",
    "truncated_policy_gradient",
    "z_loss",
]
