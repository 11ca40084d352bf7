"""Compatibility with an anchor: keep the traces that cost the student little more than the anchor's do now.

The threshold follows the anchor's running value (`mixdistill.memory.running`), so it needs no constant in nats and
tightens as the anchor is learned. Reads surprisal, so it mis-ranks conflicting teachers as every surprisal does.
"""

from typing import Any

from jaxtyping import Array, Bool, Float, Int

from mixdistill.errors import unknown


def near_anchor(
    trace_surprisal: Float[Array, "B T"],
    teacher_id: Int[Array, "B T"],
    teachers: tuple[str, ...],
    baseline: Any,
    *,
    anchor: str,
    margin: float = 0.7,
) -> Bool[Array, "B T"]:
    """Keep a trace iff its mean content surprisal <= the anchor's running mean + `margin`, in nats.

    `baseline` is the memory entry of that name. Until the anchor has been seen only its own traces pass. Raises
    `UserError` for an unknown anchor.
    """
    if anchor not in teachers:
        raise unknown("anchor", anchor, teachers)
    k = teachers.index(anchor)
    seen = baseline["num_updates"][k] > 0
    return (seen & (trace_surprisal <= baseline["value"][k] + margin)) | (~seen & (teacher_id == k))
