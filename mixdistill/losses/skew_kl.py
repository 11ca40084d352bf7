"""Skewed forward KL: keeps the teacher's support while bounding the gradient (arXiv:2402.03898).

Needs shards with the teacher's top K; close tokens without a record by the gate `has_teacher_topk`.
"""

from jaxtyping import Array, Float

from mixdistill.losses.buckets import kl, mixture, student_buckets, teacher_buckets


def skew_kl(
    topk_logprob: Float[Array, "B T K"],
    teacher_topk_logprob: Float[Array, "B T K"],
    teacher_tail_logprob: Float[Array, "B T"],
    *,
    skew: float = 0.1,
) -> Float[Array, "B T"]:
    """KL(teacher || skew * teacher + (1 - skew) * student) per token over K tokens and the tail bucket, in nats.

    `skew` 0 is forward KL; the value is at most -log(skew).
    """
    teacher = teacher_buckets(teacher_topk_logprob, teacher_tail_logprob)
    return kl(teacher, mixture(teacher, student_buckets(topk_logprob), skew))
