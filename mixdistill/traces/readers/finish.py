"""Draft -> Trace: what every format has in common."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

from mixdistill.traces.readers.row import Draft, Unfit
from mixdistill.traces.trace import Step, Trace

# File names that say nothing of who wrote the traces; the folder's name does.
PLAIN_NAME = re.compile(
    r"(train|test|validation|valid|val|dev|data|part|shard|response|responses|output|outputs|results)?[-_.\d]*(-of-\d+)?"
)
# What some servers leave of the tokens that end a completion; the teacher did not write it.
END_TOKENS = (
    *("</s>", "<eos>", "<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>"),
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)
SUFFIXES = (".gz", ".zst", ".zstd", ".jsonl", ".ndjson", ".json", ".parquet", ".arrow")


def teacher_from_name(path: Path) -> str:
    """The name of a file without its suffixes; of its folder, where the file's says nothing ("train.jsonl.gz")."""
    name = path.name
    while name.endswith(SUFFIXES):
        name = name[: name.rindex(".")]
    folder = path.resolve().parent.name
    return folder if PLAIN_NAME.fullmatch(name) and folder else name


def problem_hash(prompt: str) -> str:
    """A problem's id where the source gives none: equal for equal words, so that teachers meet on it."""
    return hashlib.sha256(" ".join(prompt.split()).encode()).hexdigest()[:16]


def finish(draft: Draft, *, source: str, line: int, teacher: str) -> Trace:
    """The trace of a draft; `teacher` holds where the row names none. Raises `Unfit` for an empty or broken text."""
    prompt, completion = _text(draft.prompt, "prompt"), _text(draft.completion, "completion")
    if not draft.logprobs and not draft.steps:
        completion = _text(_without_end_tokens(completion), "completion")
    try:
        problem_id = draft.problem_id or problem_hash(prompt)
        _ = (prompt + completion + problem_id + draft.answer + draft.reference + draft.teacher).encode()
    except UnicodeEncodeError:
        raise Unfit("broken Unicode (a lone surrogate)") from None
    except TypeError:
        raise Unfit("answer, reference, teacher or problem id is not text") from None
    logprobs, pieces = _logprobs(draft.logprobs, completion)
    meta = draft.meta | {"source": source, "line": line}
    if draft.correct is not None:
        meta["label"] = draft.correct
    if pieces:
        meta["logprob_tokens"] = pieces
    meta = json.loads(json.dumps(meta, default=str))  # tables hold dates and bytes too
    return Trace(
        problem_id,
        prompt,
        draft.steps or (Step(completion, logprobs),),
        draft.answer,
        draft.teacher or teacher,
        draft.verdict,
        draft.reference,
        meta,
    )


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise Unfit(f"the {name} is {type(value).__name__}, not text")
    if not value.strip():
        raise Unfit(f"empty {name}")
    return value


def _without_end_tokens(text: str) -> str:
    end = stop = len(text)
    while stop:
        token = next((token for token in END_TOKENS if text.endswith(token, 0, stop)), None)
        if token:
            end = stop = stop - len(token)
        elif text[stop - 1].isspace():
            stop -= 1
        else:
            break
    return text if end == len(text) else text[:end].rstrip()


def _logprobs(values: object, completion: str) -> tuple[tuple[float, ...], list[str]]:
    """The teacher's log-probabilities (nats) and, where recorded, the texts of their tokens.

    `values`: numbers, or what the usual servers write: {token, logprob} objects, in a list or under "content"."""
    if not values:
        return (), []
    rows = values.get("content") if isinstance(values, Mapping) else values
    try:
        if isinstance(rows[0], Mapping):  # type: ignore[index]
            pieces = [row["token"] for row in rows]  # type: ignore[union-attr]
            rows = [row["logprob"] for row in rows]  # type: ignore[union-attr]
        else:
            pieces = []
        numbers = tuple(float(value) for value in rows)  # type: ignore[union-attr]
    except (TypeError, LookupError, ValueError, OverflowError, AttributeError):
        raise Unfit("log-probabilities of an unknown form") from None
    if any(math.isnan(value) or value > 1e-3 for value in numbers):
        raise Unfit("log-probabilities above 0, or not numbers")
    if pieces and "".join(map(str, pieces)) != completion:
        pieces = []  # byte-level pieces: still one number a token, but their places are not known
    return numbers, pieces
