"""A survey in numbers, a dict a teacher: what `mixdistill inspect --json` prints. Shares are 0 to 1; NaN is no data."""

import collections
from collections.abc import Iterable
from typing import Any

import numpy as np

from mixdistill.diagnostics import behaviour, divergence, duplicates
from mixdistill.diagnostics.form import ANSWER_FORMATS, MARKERS, Form
from mixdistill.diagnostics.intervals import ratio_estimate
from mixdistill.diagnostics.length import difficulty, length_against_difficulty
from mixdistill.diagnostics.survey import Survey
from mixdistill.traces.shards import Shards

Numbers = dict[str, Any]


def describe_teachers(shards: Shards, found: Survey) -> dict[str, Numbers]:
    """What `survey` found of each teacher, and of its traces next to those of others."""
    index = shards.index
    teacher, problem = index["teacher_id"], index["problem"]
    length = (index["num_tokens"] - index["num_prompt"]).astype(np.float64)
    hardness = np.where(np.isnan(found.difficulty), difficulty(problem, teacher, found.correct), found.difficulty)
    pairs = duplicates.near_duplicates(found.signatures)
    table = duplicates.duplicate_table(pairs, teacher, len(shards.teachers))
    doubled = np.zeros((2, len(teacher)), bool)  # by another teacher's trace, by one of its own
    same = teacher[pairs[:, 0]] == teacher[pairs[:, 1]]
    doubled[0, pairs[~same].ravel()] = doubled[1, pairs[same].ravel()] = True
    described = {}
    for k, name in enumerate(shards.teachers):
        (own,) = np.nonzero(teacher == k)
        forms = [found.forms[i] for i in own]
        described[name] = {
            "traces": len(own),
            "tokens": int(length[own].sum()),
            "problems": len(np.unique(problem[own])),
            "accuracy": ratio_estimate(found.correct[own], np.ones(len(own)), problem[own])._asdict(),
            "length": _spread(length[own]),
            "steps": _spread(np.array([form.steps for form in forms], np.float64)),
            "markers": _markers(forms),
            "answer_formats": _shares((form.answer_format for form in forms), (*ANSWER_FORMATS, "none")),
            "think_tags": _shares((form.think_tags for form in forms), ("none", "closed", "unclosed", "unopened")),
            "truncated": _mean([form.truncated for form in forms]),
            "loops": _mean([form.loop is not None for form in forms]),
            "duplicates": _mean(doubled[1, own]),
            "copies": {
                "share": _mean(doubled[0, own]),
                "traces": {shards.teachers[j]: int(n) for j, n in enumerate(table[k]) if n and j != k},
            },
            "characters_per_token": sum(form.characters for form in forms) / max(length[own].sum() - len(own), 1),
            "control_tokens": dict(collections.Counter(token for i in own for token in found.control[i])),
            "behaviours": _behaviours(found, k),
            "length_against_difficulty": {
                "spearman": length_against_difficulty(length[own], hardness[own]),
                "traces": int((~np.isnan(hardness[own])).sum()),
            },
        }
    middle = np.median([row["length"]["median"] for row in described.values()]) if described else 1.0
    for row in described.values():
        row["length"]["relative"] = row["length"]["median"] / max(middle, 1.0)
    return described


def describe_pairs(shards: Shards, found: Survey) -> Numbers:
    """`[K, K]` tables between teachers: distance of spelling, and of the transitions between behaviours."""
    size = range(len(shards.teachers))
    return {
        "teachers": list(shards.teachers),
        "spelling": divergence.distances(found.letters),
        "behaviour_correlation": np.array(
            [[behaviour.transition_correlation(found.transitions[i], found.transitions[j]) for j in size] for i in size]
        ).reshape(len(size), len(size)),
        "behaviour_distance": divergence.distances(found.transitions.reshape(len(size), -1)),
    }


def _markers(forms: list[Form]) -> Numbers:
    words = sum(form.words for form in forms)
    counts = {marker: sum(form.markers[marker] for form in forms) for marker in MARKERS}
    whole = {marker: sum(form.marker_words[marker] for form in forms) for marker in MARKERS}
    return {
        "per_1000_words": _per_1000(sum(counts.values()), words),
        "whole_words_per_1000_words": _per_1000(sum(whole.values()), words),
        "counts": counts,
        "whole_words": whole,
    }


def _per_1000(count: int, words: int) -> float:
    return 1000 * count / words if words else float("nan")


def _behaviours(found: Survey, k: int) -> Numbers:
    total = found.behaviours[k].sum()
    shares = found.behaviours[k] / total if total else np.full(len(behaviour.BEHAVIOURS), np.nan)
    return {
        "shares": dict(zip(behaviour.BEHAVIOURS, shares.tolist(), strict=True)),
        "transitions": behaviour.transition_matrix(found.transitions[k]),
    }


def _spread(values: np.ndarray) -> Numbers:
    if not len(values):
        return dict.fromkeys(("mean", "p10", "median", "p90"), float("nan"))
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
    return {"mean": float(values.mean()), "p10": float(low), "median": float(middle), "p90": float(high)}


def _shares(names: Iterable[str], known: Iterable[str]) -> dict[str, float]:
    counts = collections.Counter(names)
    total = sum(counts.values())
    return {name: counts[name] / total for name in known if counts[name]}


def _mean(values) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
