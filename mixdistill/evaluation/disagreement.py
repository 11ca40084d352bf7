"""Undecidable disagreement of every teacher with the one that a student has learned: how much, where in the traces, and
passages to look at."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mixdistill.diagnostics.content import Completions, completions, sample_traces
from mixdistill.diagnostics.undecidable import (
    SecondOpinion,
    Torn,
    agreed,
    profile,
    summary,
    torn_tokens,
    worst_tokens,
)
from mixdistill.generation import contexts
from mixdistill.generation.scoring import Runner
from mixdistill.traces.shards import Shards

TAUGHT_TOKENS = 20_000  # of each teacher, that teach the classifier
PASSAGES, BEFORE = 3, 24  # shown of each teacher; tokens before the one that the student contradicts

Fields = Mapping[str, np.ndarray]


class _Asked(NamedTuple):
    """A teacher's traces that were scored."""

    numbers: np.ndarray  # int64 [traces]
    flat: Completions
    label: np.ndarray  # float32, an entry a completion token, as in `flat`
    top1: np.ndarray
    torn: Torn


def disagreements(
    shards: Shards, anchor: str, numbers: np.ndarray, own: Sequence[Fields], runner: Runner, *, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """A dict a teacher but the anchor, JSON values. `own` are the fields of the traces `numbers` under the context
    `full`; the classifier learns from other traces. `runner` is asked what the student would have written."""
    teacher, scored = shards.index["teacher_id"][numbers], set(numbers.tolist())
    chosen = sample_traces(shards, 2**31, seed=seed)
    rest = {name: [n for n in order.tolist() if n not in scored] for name, order in chosen.items()}
    taught = {name: completions(shards, _within(shards, others)) for name, others in rest.items()}
    asked = {}
    for k, name in enumerate(shards.teachers):
        (mine,) = np.nonzero(teacher == k)
        if name != anchor and len(mine):
            label, top1 = (
                np.concatenate([own[i][field] for i in mine.tolist()]) for field in ("label_logprob", "top1_logprob")
            )
            flat = completions(shards, numbers[mine])
            torn = torn_tokens(taught[anchor], taught[name], flat, label, top1)
            asked[name] = _Asked(numbers[mine], flat, label, top1, torn)
    passages = _passages(shards, asked, runner)
    return {name: {"anchor": anchor, **_numbers(one), "passages": passages[name]} for name, one in asked.items()}


def add_second_opinion(row: dict[str, Any], opinion: SecondOpinion) -> None:
    """Writes it into a teacher's dict. Where the two opinions differ there is no verdict: "conflict" is None."""
    first, second = row["conflict"], opinion.conflicts()
    row["second_opinion"] = {**opinion._asdict(), "score": opinion.score, "conflict": second}
    if second is not None:
        row["conflict"] = agreed(first, second)
        if row["conflict"] is None:
            row["verdict"] = "undecided: two opinions differ"


def _numbers(asked: _Asked) -> dict[str, Any]:
    found = summary(asked.flat, asked.torn)
    parts = [part._asdict() for part in profile(asked.flat, asked.torn)]
    return {**found._asdict(), "conflict": found.conflicts(), "verdict": found.verdict, "profile": parts}


def _passages(shards: Shards, asked: Mapping[str, _Asked], runner: Runner) -> dict[str, list[dict[str, Any]]]:
    """The worst tokens of each teacher as text: what stands before, what it writes, what the student would write."""
    worst = {name: worst_tokens(one.flat, one.torn, PASSAGES) for name, one in asked.items()}
    wanted = [(name, int(entry)) for name, entries in worst.items() for entry in entries]
    traces = [shards[int(asked[name].numbers[asked[name].flat.trace[entry]])] for name, entry in wanted]
    offsets, fields = runner(contexts.topk(1), traces)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in asked}
    for (name, entry), offset, encoded in zip(wanted, offsets, traces, strict=False):
        one, place = asked[name], int(asked[name].flat.place[entry])
        tokens = encoded.tokens[encoded.num_prompt :]
        decode = shards.tokenizer.decode
        found[name].append(
            {
                "problem": encoded.trace.problem_id,
                "before": decode(tokens[max(place - BEFORE, 0) : place].tolist()),
                "writes": decode([int(tokens[place])]),
                "probability": float(np.exp(one.label[entry])),
                "student": decode([int(fields["topk_id"][offset + place, 0])]),
                "student_probability": float(np.exp(one.top1[entry])),
                "decodability": float(one.torn.decodable[np.searchsorted(one.torn.entry, entry)]),
            }
        )
    return found


def _within(shards: Shards, numbers: list[int]) -> list[int]:
    """As many of the traces, in order, as TAUGHT_TOKENS allow."""
    total = np.cumsum(shards.index["num_tokens"][np.array(numbers, np.int64)])
    return numbers[: int(np.searchsorted(total, TAUGHT_TOKENS, side="right"))]
