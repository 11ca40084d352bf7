"""One pass over shards: every trace's form, and sums by teacher. No student. Parts add up, so processes share it."""

from typing import NamedTuple

import numpy as np

from mixdistill.diagnostics import behaviour, duplicates, spelling, tokenization
from mixdistill.diagnostics.form import Form, form_of
from mixdistill.traces.record import EncodedTrace
from mixdistill.traces.shards import Shards
from mixdistill.traces.trace import Verdict


class Survey(NamedTuple):
    """Lists and arrays have an entry a trace; those of `K` an entry a teacher."""

    forms: list[Form]
    signatures: np.ndarray  # uint32 [N, HASHES]
    correct: np.ndarray  # float64 [N]: 1, 0, NaN where unknown
    difficulty: np.ndarray  # float64 [N]: the world's own, NaN where it gives none
    control: list[list[str]]  # control tokens written out in the text
    letters: np.ndarray  # int64 [K, bins]: character n-grams
    transitions: np.ndarray  # int64 [K, 3, 3]
    behaviours: np.ndarray  # int64 [K, 3]: steps of each behaviour
    prompts: dict[int, str]  # of each problem


def survey(shards: Shards, first: int, stop: int) -> Survey:
    """Traces first..stop-1."""
    size = len(shards.teachers)
    made = Survey(
        [],
        np.zeros((stop - first, duplicates.HASHES), np.uint32),
        np.full(stop - first, np.nan),
        np.full(stop - first, np.nan),
        [],
        np.zeros((size, spelling.BINS), np.int64),
        np.zeros((size, len(behaviour.BEHAVIOURS), len(behaviour.BEHAVIOURS)), np.int64),
        np.zeros((size, len(behaviour.BEHAVIOURS)), np.int64),
        {},
    )
    for n in range(stop - first):
        encoded = shards[first + n]
        _add(made, n, int(shards.index["teacher_id"][first + n]), encoded)
        made.prompts.setdefault(int(shards.index["problem"][first + n]), encoded.trace.prompt)
    return made


def merge(parts: list[Survey]) -> Survey:
    """The survey of all their traces, in order. Raises `ValueError` for no parts."""
    if not parts:
        raise ValueError("no parts to merge")
    return Survey(
        [form for part in parts for form in part.forms],
        np.concatenate([part.signatures for part in parts]),
        np.concatenate([part.correct for part in parts]),
        np.concatenate([part.difficulty for part in parts]),
        [tokens for part in parts for tokens in part.control],
        np.sum([part.letters for part in parts], axis=0),
        np.sum([part.transitions for part in parts], axis=0),
        np.sum([part.behaviours for part in parts], axis=0),
        dict(item for part in reversed(parts) for item in part.prompts.items()),
    )


def _add(made: Survey, n: int, teacher: int, encoded: EncodedTrace) -> None:
    trace, completion = encoded.trace, encoded.tokens[encoded.num_prompt : -1]
    text = trace.text
    made.forms.append(form_of(trace, completion))
    made.signatures[n] = duplicates.signature(completion)
    made.correct[n] = correctness(encoded)
    made.difficulty[n] = float(trace.meta.get("difficulty", "nan"))
    made.control.append(tokenization.control_tokens_in(text))
    made.letters[teacher] += spelling.character_ngrams(text)
    labels = [behaviour.label_by_cues(step.text) for step in trace.steps]
    made.transitions[teacher] += behaviour.count_transitions([labels])
    made.behaviours[teacher] += np.bincount(labels, minlength=len(behaviour.BEHAVIOURS))


def correctness(encoded: EncodedTrace) -> float:
    """1 or 0 by the verdict; where nobody graded, by the label that came with the source; NaN where neither is."""
    trace = encoded.trace
    if trace.verdict in (Verdict.CORRECT, Verdict.WRONG):
        return float(trace.verdict == Verdict.CORRECT)
    label = trace.meta.get("label")
    return float(label) if isinstance(label, bool) else float("nan")
