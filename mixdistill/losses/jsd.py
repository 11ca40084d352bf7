"""Generalised Jensen-Shannon divergence to a teacher's recorded top K and tail (GKD, arXiv:2306.13649).

It vanishes as `beta` goes to 0 or 1, and its gradient with it, by about beta (1 - beta): a sweep of `beta` also sweeps
the learning rate. The ends are no limits of it; take `forward_kl` or `reverse_kl` there. Needs shards with the
teacher's top K; close tokens without a record by the gate `has_teacher_topk`.
"""

from jaxtyping import Array, Float

from mixdistill.errors import UserError
from mixdistill.losses.buckets import kl, mixture, student_buckets, teacher_buckets


def jsd(
    topk_logprob: Float[Array, "B T K"],
    teacher_topk_logprob: Float[Array, "B T K"],
    teacher_tail_logprob: Float[Array, "B T"],
    *,
    beta: float = 0.5,
) -> Float[Array, "B T"]:
    """beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student, per token, in nats.

    Raises `UserError` unless `beta` is between 0 and 1; a schedule has to stay there.
    """
    if isinstance(beta, float | int) and not 0 < beta < 1:
        raise UserError(f"jsd: beta is {beta}; it lies between 0 and 1; at the ends take forward_kl or reverse_kl")
    teacher, student = teacher_buckets(teacher_topk_logprob, teacher_tail_logprob), student_buckets(topk_logprob)
    middle = mixture(teacher, student, beta)
    return beta * kl(teacher, middle) + (1 - beta) * kl(student, middle)
