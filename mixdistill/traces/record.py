"""One encoded trace and its bytes in a shard: a small header, raw arrays, and the trace itself as JSON."""

import json
import struct
from typing import NamedTuple

import numpy as np

from mixdistill.errors import UserError
from mixdistill.traces.trace import Trace


class EncodedTrace(NamedTuple):
    """A trace as tokens. n counts prompt, completion and the end token; the first `num_prompt` are the prompt."""

    tokens: np.ndarray  # int32 [n]
    step_id: np.ndarray  # int32 [n]: 0 in the prompt, 1..S in the steps; the end token has S
    num_prompt: int
    logprobs: np.ndarray | None  # float32 [n]: the teacher's own, nats; NaN where not recorded; None: nowhere
    trace: Trace
    answer: tuple[int, int] = (0, 0)  # tokens [start, stop) that hold the final answer; empty when not in the text


# Magic, tokens, prompt tokens, answer start, answer stop, whether log-probabilities follow (0 or 1).
HEADER = struct.Struct("<4s5I")
MAGIC = b"MDT1"


def to_bytes(encoded: EncodedTrace) -> bytes:
    """The record: header, int32 tokens, int32 step ids, float32 log-probabilities (if any), JSON; little-endian."""
    has_logprobs = encoded.logprobs is not None
    header = HEADER.pack(MAGIC, len(encoded.tokens), encoded.num_prompt, *encoded.answer, has_logprobs)
    parts = [header, encoded.tokens.astype("<i4").tobytes(), encoded.step_id.astype("<i4").tobytes()]
    if encoded.logprobs is not None:
        parts.append(encoded.logprobs.astype("<f4").tobytes())
    return b"".join((*parts, json.dumps(encoded.trace.to_json(), ensure_ascii=False).encode()))


class Arrays(NamedTuple):
    """The arrays of a record without its JSON: what packing needs. Read-only views of the record's bytes."""

    tokens: np.ndarray  # int32 [n]
    step_id: np.ndarray  # int32 [n]
    num_prompt: int
    logprobs: np.ndarray | None  # float32 [n]
    answer: tuple[int, int]


def arrays(record: bytes) -> Arrays:
    """Inverts the array part of `to_bytes`. Raises `UserError` for bytes that are no record."""
    return _split(record)[0]


def from_bytes(record: bytes) -> EncodedTrace:
    """Inverts `to_bytes`. Raises `UserError` for bytes that are no record."""
    (tokens, step_id, num_prompt, logprobs, answer), rest = _split(record)
    try:
        trace = Trace.from_json(json.loads(rest))
    except UserError:
        raise
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"a record of these shards is damaged ({error}); prepare the shards again") from None
    return EncodedTrace(tokens, step_id, num_prompt, logprobs, trace, answer)


def _split(record: bytes) -> tuple[Arrays, bytes]:
    if len(record) < HEADER.size or not record.startswith(MAGIC):
        raise UserError("a record of these shards is damaged or of another kind; prepare the shards again")
    _, length, num_prompt, start, stop, has_logprobs = HEADER.unpack_from(record)
    first, size = HEADER.size, 4 * length
    end = first + (3 if has_logprobs else 2) * size
    if len(record) < end:
        raise UserError("a record of these shards is cut short; prepare the shards again")
    if not (length and num_prompt <= length and start <= stop <= length):
        raise UserError("a record of these shards contradicts itself; prepare the shards again")
    tokens = np.frombuffer(record, "<i4", length, first)
    step_id = np.frombuffer(record, "<i4", length, first + size)
    logprobs = np.frombuffer(record, "<f4", length, first + 2 * size) if has_logprobs else None
    return Arrays(tokens, step_id, num_prompt, logprobs, (start, stop)), record[end:]
