"""What the index and the tables know of each trace: lengths, teacher, problem, fold, verdict. No text."""

import collections
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mixdistill.errors import UserError
from mixdistill.traces.record import EncodedTrace
from mixdistill.traces.trace import Verdict

INDEX = "index.npz"
VERDICTS = tuple(verdict.value for verdict in Verdict)
MAX_FOLDS = 127  # int8 in the index


class Quarantined(NamedTuple):
    """A row that was left out, and why. `teacher` is "" when the row does not say."""

    file: str
    line: int  # from 1; 0: unknown
    reason: str
    teacher: str = ""
    excerpt: str = ""


class Summary(NamedTuple):
    """What index and tables need of one record."""

    num_tokens: int
    num_prompt: int
    num_steps: int
    teacher: str
    problem: str
    fold: str
    verdict: str
    logprobs: str  # "kept", "dropped" (recorded, but of another tokenizer), "" (not recorded)


def summarise(encoded: EncodedTrace) -> Summary:
    """The index row of a trace."""
    trace = encoded.trace
    recorded = any(step.token_logprobs for step in trace.steps)
    return Summary(
        len(encoded.tokens),
        encoded.num_prompt,
        len(trace.steps),
        trace.teacher,
        trace.problem_id,
        str(trace.meta.get("fold") or ""),
        trace.verdict.value,
        "kept" if encoded.logprobs is not None else "dropped" if recorded else "",
    )


def write_index(path: Path, summaries: list[Summary]) -> None:
    """index.npz, see `Shards.index`. Problem ids are JSON in bytes: a numpy string array pads each to the longest."""
    problems = sorted({row.problem for row in summaries})
    columns = {
        "num_tokens": np.array([row.num_tokens for row in summaries], np.int32),
        "num_prompt": np.array([row.num_prompt for row in summaries], np.int32),
        "num_steps": np.array([row.num_steps for row in summaries], np.int32),
        "teacher_id": _codes([row.teacher for row in summaries], sorted({row.teacher for row in summaries}), np.int32),
        "problem": _codes([row.problem for row in summaries], problems, np.int32),
        "verdict": _codes([row.verdict for row in summaries], VERDICTS, np.int8),
        "fold": _codes([row.fold for row in summaries], fold_names(summaries), np.int8),
    }
    text = json.dumps(problems, ensure_ascii=False).encode()
    np.savez_compressed(path, **columns, problems=np.frombuffer(text, np.uint8))


def fold_names(summaries: list[Summary]) -> list[str]:
    """The folds in alphabetical order; "" is no fold. Raises `UserError` for more than the index can number."""
    names = sorted({row.fold for row in summaries})
    if len(names) > MAX_FOLDS:
        raise UserError(f"{len(names)} different folds ({', '.join(names[:3])}, ...); at most {MAX_FOLDS} are possible")
    return names


def teacher_table(summaries: list[Summary], quarantined: list[Quarantined]) -> dict[str, dict[str, Any]]:
    """`{teacher: counts}` in alphabetical order, of the teachers that have a trace. `num_tokens` counts all tokens;
    `num_completion_tokens` leaves the prompts out; `accuracy` is correct / (correct + wrong), None if none was graded;
    `logprobs_kept` and `logprobs_dropped` count traces that came with the teacher's log-probabilities.
    """
    lost = collections.Counter(row.teacher for row in quarantined)
    by_teacher = itertools.groupby(sorted(summaries, key=lambda row: row.teacher), key=lambda row: row.teacher)
    return {teacher: {**_count(list(rows)), "quarantined": lost[teacher]} for teacher, rows in by_teacher}


def _count(rows: list[Summary]) -> dict[str, Any]:
    verdicts = collections.Counter(row.verdict for row in rows)
    graded = verdicts["correct"] + verdicts["wrong"]
    num_tokens = sum(row.num_tokens for row in rows)
    return {
        "num_traces": len(rows),
        "num_tokens": num_tokens,
        "num_completion_tokens": num_tokens - sum(row.num_prompt for row in rows),
        "num_steps": sum(row.num_steps for row in rows),
        "accuracy": verdicts["correct"] / graded if graded else None,
        **{name: verdicts[name] for name in VERDICTS},
        **{f"logprobs_{what}": sum(row.logprobs == what for row in rows) for what in ("kept", "dropped")},
    }


def _codes(values: list[str], names: Sequence[str], dtype: type) -> np.ndarray:
    code = {name: i for i, name in enumerate(names)}
    return np.array([code[value] for value in values], dtype)


def counted(values: Iterable[str]) -> dict[str, int]:
    """How often each value comes, most frequent first."""
    return dict(sorted(collections.Counter(values).items(), key=lambda item: (-item[1], item[0])))
