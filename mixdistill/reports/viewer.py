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


def trace_views(shards: Shards, numbers: Sequence[int], fields: Mapping[int, Fields]) -> list[dict[str, Any]]:
    """JSON values, one dict a trace. `fields` are the ledger's, by trace number; a trace without is not shaded.

    Masked are the least confident tenth of all steps shown: those that the gate step_confidence would close here.
    """
    encoded = {number: shards[number] for number in numbers}
    limit = _limit(
        [means for n in numbers if n in fields for means in _step_confidence(encoded[n], fields[n]).values()]
    )
    return [_view(shards.tokenizer, encoded[number], fields.get(number), limit) for number in numbers]


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


def _view(tokenizer: Tokenizer, encoded: EncodedTrace, fields: Fields | None, limit: float) -> dict[str, Any]:
    trace, steps = encoded.trace, encoded.step_id[encoded.num_prompt :]
    masked = []
    if fields is not None:
        masked = [step for step, mean in _step_confidence(encoded, fields).items() if mean < limit]
    return {
        "teacher": trace.teacher,
        "problem": trace.problem_id,
        "verdict": trace.verdict.value,
        "prompt": trace.prompt,
        "tokens": pieces(tokenizer, encoded)[:MAX_TOKENS],
        "step": steps[:MAX_TOKENS].tolist(),
        "masked": masked,
        "surprisal": _rounded(None if fields is None else -fields["label_logprob"]),
        "confidence": _rounded(None if fields is None else fields["confidence"]),
    }


def _rounded(values: np.ndarray | None) -> list[float]:
    return [] if values is None else [round(float(value), 2) for value in values[:MAX_TOKENS]]


def _step_confidence(encoded: EncodedTrace, fields: Fields) -> dict[int, float]:
    """Mean confidence of each step, nats."""
    steps = encoded.step_id[encoded.num_prompt :]
    return {int(step): float(fields["confidence"][steps == step].mean()) for step in np.unique(steps)}


def _limit(means: Sequence[float]) -> float:
    """As `signals.steps.quantile`: the lower value between two."""
    ordered = np.sort(np.array(means))
    return float(ordered[int(MASKED * len(ordered))]) if len(ordered) else float("-inf")
