"""Instruction-following difficulty (IFD): keep the traces that their prompt helps, and not too much.

Costs one more forward, the completion without its prompt, kept beside the shards as `alone_logprob`. As a trace score
of the student it shares surprisal's fault: it says nothing about teachers whose forms conflict.
"""

from jaxtyping import Array, Bool, Float


def difficulty(
    trace_difficulty: Float[Array, "B T"], *, easiest: float = 0.0, hardest: float = 1.0
) -> Bool[Array, "B T"]:
    """Keep a trace iff `easiest` <= IFD < `hardest` (arXiv:2402.10110: hardest 1, above which the prompt hinders).

    `use(difficulty, trace_difficulty=use(trace_difficulty, kind="loss"))` compares losses instead of perplexities.
    """
    return (trace_difficulty >= easiest) & (trace_difficulty < hardest)
