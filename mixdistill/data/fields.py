"""The batch schema in one table: every named array that goes from host to device.

Convention: column t of a row is the input token at t, and everything that describes a *target* (target, valid,
step_id, content, teacher_logprob) describes the token that follows it in the same trace. So losses never shift.
"""

from typing import Literal, NamedTuple

import numpy as np

Batch = dict[str, np.ndarray]


class Field(NamedTuple):
    """One named array of a batch. `shape` uses B rows and T columns."""

    shape: tuple[Literal["B", "T", "K"], ...]
    dtype: type
    padding: int | float | bool
    meaning: str
    optional: bool = False


FIELDS: dict[str, Field] = {
    "tokens": Field(("B", "T"), np.int32, 0, "input token ids"),
    "target": Field(("B", "T"), np.int32, 0, "the next token of the same trace; 0 where there is none"),
    "valid": Field(("B", "T"), np.bool_, False, "True where the target is a completion token (trained on); not prompt"),
    "segment_id": Field(("B", "T"), np.int32, 0, "1, 2, ... for the traces of a row; 0 is padding"),
    "position": Field(("B", "T"), np.int32, 0, "position of the input token inside its own trace, from 0"),
    "step_id": Field(
        ("B", "T"), np.int32, 0, "reasoning step of the target, from 1; the end token belongs to the last; 0: not valid"
    ),
    "teacher_id": Field(
        ("B", "T"), np.int32, 0, "index into the manifest's teachers; read it only where segment_id > 0"
    ),
    "trace_id": Field(("B", "T"), np.int32, -1, "index of the trace in its shards; -1 is padding"),
    "content": Field(
        ("B", "T"), np.bool_, False, "True where the target is valid and carries content (not filler, '=' or end)"
    ),
    "teacher_logprob": Field(
        ("B", "T"), np.float32, np.nan, "the teacher's own log-probability of the target, nats; NaN: not recorded", True
    ),
}

# Only in batches of shards that hold what the teacher thought possible: K tokens for every token.
TOP_K_FIELDS: dict[str, Field] = {
    "teacher_topk_ids": Field(
        ("B", "T", "K"), np.int32, 0, "ids of the K tokens that the teacher found most likely, each once", True
    ),
    "teacher_topk_logprob": Field(
        ("B", "T", "K"), np.float32, np.nan, "the teacher's log-probabilities of these, nats; NaN: not recorded", True
    ),
    "teacher_tail_logprob": Field(
        ("B", "T"), np.float32, np.nan, "log of the teacher's probability outside its top K; NaN: not recorded", True
    ),
}
