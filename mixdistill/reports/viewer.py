"""What the trace viewer shows: a few traces token by token, shaded by what a student thinks of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mixdistill.diagnostics.content import sample_traces
from mixdistill.traces.record import EncodedTrace
from mixdistill.traces.shards import Shards
from mixdistill.traces.tokenizer import Tokenizer

MAX_TRACES, MAX_TOKENS = 48, 1500  # on the page, and of one trace: a page stays well below ten megabytes
MASKED = 0.1  # share of the steps that step_confidence closes by default

Fields = Mapping[str, np.ndarray]


def choose_traces(shards: Shards, count: int = MAX_TRACES, *, seed: int = 0) -> list[int]:
    """Numbers of `count` traces, the teachers in turn."""
    sampled = [order.tolist() for order in sample_traces(shards, count, seed=seed).values()]
    turns = [order[turn] for turn in range(count) for order in sampled if turn < len(order)]
    return turns[:count]


def trace_views(
    shards: Shards,
    numbers: Sequence[int],
    fields: Mapping[int, Fields],
    closed: Mapping[int, np.ndarray] | None = None,
) -> list[dict[str, Any]]:
    """JSON values, one dict a trace. `fields` are the ledger's, by trace number; a trace without is not shaded.

    `closed` says which completion tokens a run's gates close (`replay`), bool [n] of each trace. Without it they are
    those of the least confident tenth of all steps shown: what the gate step_confidence would close here.
    """
    encoded = {number: shards[number] for number in numbers}
    closed = _unsure(encoded, fields) if closed is None else closed
    return [_view(shards.tokenizer, encoded[n], fields.get(n), closed.get(n)) for n in numbers]


def pieces(tokenizer: Tokenizer, encoded: EncodedTrace) -> list[str]:
    """The text of each completion token; joined they are the trace's text and the end token's name."""
    text, tokens = encoded.trace.text, encoded.tokens[encoded.num_prompt : -1].tolist()
    encoding = tokenizer.encode_with_offsets(text)
    if encoding.ids != tokens:  # the text continues a template and is cut otherwise in front
        return [tokenizer.decode([token]) for token in tokens] + [tokenizer.eos]
    found, end = [], 0
    for start, stop in encoding.offsets:
        # What lies between two tokens (white space that a tokenizer drops) goes with the one behind it.
        found.append(text[min(end, start) if stop > end else end : max(stop, end)])
        end = max(stop, end)
    if found:
        found[-1] += text[end:]
    return [*found, tokenizer.eos]


def _view(
    tokenizer: Tokenizer, encoded: EncodedTrace, fields: Fields | None, closed: np.ndarray | None
) -> dict[str, Any]:
    trace, steps = encoded.trace, encoded.step_id[encoded.num_prompt :]
    return {
        "teacher": trace.teacher,
        "problem": trace.problem_id,
        "verdict": trace.verdict.value,
        "prompt": trace.prompt,
        "tokens": pieces(tokenizer, encoded)[:MAX_TOKENS],
        "step": steps[:MAX_TOKENS].tolist(),
        "masked": [] if closed is None else np.flatnonzero(closed[:MAX_TOKENS]).tolist(),
        "surprisal": _rounded(None if fields is None else -fields["label_logprob"]),
        "confidence": _rounded(None if fields is None else fields["confidence"]),
    }


def _rounded(values: np.ndarray | None) -> list[float]:
    return [] if values is None else [round(float(value), 2) for value in values[:MAX_TOKENS]]


def _unsure(encoded: Mapping[int, EncodedTrace], fields: Mapping[int, Fields]) -> dict[int, np.ndarray]:
    """bool [n] of each trace that has fields: tokens of the least confident steps of all."""
    means = {n: _step_confidence(encoded[n], fields[n]) for n in encoded if n in fields}
    limit = _limit([mean for of_trace in means.values() for mean in of_trace.values()])
    return {
        n: np.isin(encoded[n].step_id[encoded[n].num_prompt :], [s for s, mean in of_trace.items() if mean < limit])
        for n, of_trace in means.items()
    }


def _step_confidence(encoded: EncodedTrace, fields: Fields) -> dict[int, float]:
    """Mean confidence of each step, nats."""
    steps = encoded.step_id[encoded.num_prompt :]
    return {int(step): float(fields["confidence"][steps == step].mean()) for step in np.unique(steps)}


def _limit(means: Sequence[float]) -> float:
    """As `signals.steps.quantile`: the lower value between two."""
    ordered = np.sort(np.array(means))
    return float(ordered[int(MASKED * len(ordered))]) if len(ordered) else float("-inf")
