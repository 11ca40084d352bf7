"""Reverse KL to a teacher's recorded top K and tail: stay within what the teacher thought possible.

Needs shards with the teacher's top K; close tokens without a record by the gate `has_teacher_topk`.
"""

from jaxtyping import Array, Float

from mixdistill.losses.buckets import kl, student_buckets, teacher_buckets


def reverse_kl(
    topk_logprob: Float[Array, "B T K"],
    teacher_topk_logprob: Float[Array, "B T K"],
    teacher_tail_logprob: Float[Array, "B T"],
) -> Float[Array, "B T"]:
    """KL(student || teacher) per token over K tokens and the tail bucket, in nats (cf. arXiv:2306.08543; the tail as in
    arXiv:2601.20802)."""
    return kl(student_buckets(topk_logprob), teacher_buckets(teacher_topk_logprob, teacher_tail_logprob))
