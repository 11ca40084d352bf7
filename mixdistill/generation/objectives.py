"""Objectives for rollouts: the published variants, put together from their parts.

Settings that belong to the source go to `Rollouts`: `normalise`, `per`, `max_rounds`, `teaching`. Every objective
watches, under teacher "self", `teacher/entropy` (nats) and what applies of `teacher/clipped(...)` (share of the tokens
that the clip silences), `teacher/truncated(...)` and `teacher/k3_kl` (nats: KL(student || reference), estimated).
"""

from collections.abc import Mapping

from mixdistill.gates.high_entropy import high_entropy
from mixdistill.gates.routed import distilled, reinforced
from mixdistill.gates.sequence_mean import sequence_mean
from mixdistill.generation.drawn import ADVANTAGE, DISTIL, REFERENCE
from mixdistill.losses.jsd import jsd
from mixdistill.losses.policy_gradient import (
    clipped,
    k3_kl,
    policy_gradient,
    reverse_kl_gradient,
    truncated,
    truncated_policy_gradient,
)
from mixdistill.losses.topk_reverse_kl import topk_reverse_kl
from mixdistill.objective import Objective, Term
from mixdistill.signals.signal import Bound, Signal, use

FIELDS = (ADVANTAGE, REFERENCE, DISTIL)


def grpo(*, clip: float = 0.2, kl: float = 0.0) -> Objective:
    """GRPO (arXiv:2402.03300): every completion counts as much. `kl` weighs the KL to a reference, which `teaching` has
    to name."""
    loss, watched = _clipping(clip, clip)
    terms = {"reward": Term(loss, gates=(sequence_mean,))}
    if kl:
        terms["kl"] = Term(k3_kl, coef=kl, gates=(sequence_mean,))
    return _watching(terms, watched, *([k3_kl] if kl else []))


def dapo(*, clip_low: float = 0.2, clip_high: float = 0.28) -> Objective:
    """DAPO (arXiv:2503.14476): the upper clip is wider, every token counts as much. Set `max_rounds` above 1, and take
    the judge `not_overlong`."""
    loss, watched = _clipping(clip_low, clip_high)
    return _watching({"reward": Term(loss)}, watched)


def dr_grpo(*, clip: float = 0.2) -> Objective:
    """Dr. GRPO (arXiv:2503.20783). Set `normalise="none"` and `per="max_new"`."""
    return dapo(clip_low=clip, clip_high=clip)


def uncertain_tokens(*, keep: float = 0.2, clip_low: float = 0.2, clip_high: float = 0.28) -> Objective:
    """80/20 (arXiv:2506.01939): DAPO on the share `keep` of the tokens at which the student is least certain."""
    loss, watched = _clipping(clip_low, clip_high)
    return _watching({"reward": Term(loss, gates=(use(high_entropy, keep=keep),))}, watched)


def off_policy(*, limit: float = 2.0) -> Objective:
    """For completions of older weights or of a server: importance weights cut at `limit` in place of a clip."""
    terms = {"reward": Term(use(truncated_policy_gradient, limit=limit))}
    return _watching(terms, use(truncated, limit=limit))


def on_policy_distillation(*, coef: float = 1.0, limit: float = float("inf")) -> Objective:
    """Reverse KL to each prompt's reference at the drawn tokens. Set `teaching`."""
    return _watching({"distil": Term(use(reverse_kl_gradient, coef=coef, limit=limit))}, k3_kl)


def top_k_distillation() -> Objective:
    """Reverse KL to each prompt's reference on its most likely tokens, corrected (arXiv:2606.30406). Set `teaching`
    with a `top_k`."""
    return _watching({"distil": Term(topk_reverse_kl)}, k3_kl)


def gkd(*, beta: float = 0.5) -> Objective:
    """Generalised knowledge distillation (arXiv:2306.13649): Jensen-Shannon divergence to each prompt's reference on
    its most likely tokens. Set `teaching` with a `top_k` and an `own_share`, GKD's lambda."""
    return _watching({"distil": Term(use(jsd, beta=beta))}, k3_kl)


def distil_or_reinforce(*, clip_low: float = 0.2, clip_high: float = 0.28) -> Objective:
    """Each prompt by its reference or by its reward, never by both (TGOPD-like, arXiv:2609.02998). Set `teaching` with
    `probes`. The two parts are means of their own and count alike."""
    loss, watched = _clipping(clip_low, clip_high)
    terms = {"distil": Term(reverse_kl_gradient, gates=(distilled,)), "reward": Term(loss, gates=(reinforced,))}
    return _watching(terms, watched, k3_kl)


def _clipping(low: float, high: float) -> tuple[Bound, Bound]:
    """The loss, and the share of tokens that its clip silences."""
    return use(policy_gradient, clip_low=low, clip_high=high), use(clipped, clip_low=low, clip_high=high)


def _watching(terms: Mapping[str, Term], *watched: Bound | Signal) -> Objective:
    return Objective(terms, fields=FIELDS, watch=("entropy", *watched))
