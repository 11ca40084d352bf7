"""Forward KL to a teacher's recorded top K and tail: cover everything that the teacher thought possible.

Needs shards with the teacher's top K; close tokens without a record by the gate `has_teacher_topk`.
"""

from jaxtyping import Array, Float

from mixdistill.losses.buckets import kl, student_buckets, teacher_buckets


def forward_kl(
    topk_logprob: Float[Array, "B T K"],
    teacher_topk_logprob: Float[Array, "B T K"],
    teacher_tail_logprob: Float[Array, "B T"],
) -> Float[Array, "B T"]:
    """KL(teacher || student) per token over K tokens and the tail bucket, in nats (arXiv:1503.02531, temperature 1)."""
    return kl(teacher_buckets(teacher_topk_logprob, teacher_tail_logprob), student_buckets(topk_logprob))
