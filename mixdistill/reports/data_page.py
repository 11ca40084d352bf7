"""What a report says of the shards a run was trained on, and of what its student makes of some traces."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mixdistill.diagnostics.conflict import conflict_matrix, count_continuations
from mixdistill.diagnostics.content import content_traces
from mixdistill.diagnostics.length import difficulty
from mixdistill.evaluation.calibration import calibration_bins
from mixdistill.reports import figures
from mixdistill.reports.page import Section
from mixdistill.traces.shards import Shards

CONFLICT_TRACES = 400  # a teacher
BINS = 10
Fields = Mapping[int, Mapping[str, np.ndarray]]  # trace number -> the ledger's fields


def data_sections(shards: Shards) -> list[Section]:
    """Conflict between the teachers, and length against difficulty."""
    matrix = conflict_matrix(count_continuations(content_traces(shards, CONFLICT_TRACES)))
    top = float(max(np.nanmax(matrix.score, initial=0.0), 0.1))
    about = "Continuation conflict of every two teachers, in bits."
    heat = figures.heat_map("conflict-map", about, shards.teachers, matrix.score, "bits", low=0, high=top)
    curves = length_against_difficulty(shards)
    plot = figures.lines(
        "length", "Mean length over difficulty.", curves, "share of teachers that fail", "tokens", share_x=True
    )
    return [
        Section("conflict", "conflict between teachers", figures=[heat] if len(shards.teachers) > 1 else []),
        Section("lengths", "length against difficulty", figures=[plot] if curves else []),
    ]


def student_sections(shards: Shards, fields: Fields) -> list[Section]:
    """Calibration and confidence along a trace, from scored traces."""
    if not fields:
        return []
    bins = token_calibration(list(fields.values()))
    error = sum(count * abs(p - right) for p, right, count in bins) / max(sum(count for *_, count in bins), 1)
    about = (
        f"How often the first choice is the token that follows, against its probability; {len(fields)} traces. "
        f"Expected calibration error {error:.3f}."
    )
    sure = figures.calibration("calibration-curve", about, bins, "student", x="probability of the first choice")
    curves = step_confidence(shards, fields)
    words = "Mean confidence (DeepConf's C) of the reasoning steps from first to last, teacher by teacher."
    steps = figures.lines(
        "step-confidence", words, curves, "place of the step in its trace", "confidence, nats", share_x=True
    )
    return [
        Section("calibration", "calibration of tokens", figures=[sure]),
        Section("confidence", "confidence of reasoning steps", figures=[steps]),
    ]


def length_against_difficulty(shards: Shards) -> dict[str, tuple[list[float], list[float]]]:
    """For each teacher (difficulty, mean completion length in tokens), by the verdicts in the index."""
    index = shards.index
    right, wrong = (index["verdict"] == shards.verdicts.index(name) for name in ("correct", "wrong"))
    correct = np.where(right, 1.0, np.where(wrong, 0.0, np.nan))
    hard = difficulty(index["problem"], index["teacher_id"], correct)
    place = np.floor(np.nan_to_num(hard, nan=-1) * BINS)
    length = (index["num_tokens"] - index["num_prompt"]).astype(np.float64)
    curves = {}
    for k, name in enumerate(shards.teachers):
        mine = (index["teacher_id"] == k) & ~np.isnan(hard)
        groups = [(b, mine & (place == b)) for b in np.unique(place[mine])]
        if groups:
            curves[name] = ([float(hard[g].mean()) for _, g in groups], [float(length[g].mean()) for _, g in groups])
    return curves


def token_calibration(fields: Sequence[Mapping[str, np.ndarray]], bins: int = BINS) -> list[tuple[float, float, int]]:
    """(mean probability of the first choice, share that is right, tokens) in bins of equal width."""
    probability = np.exp(np.concatenate([f["top1_logprob"] for f in fields]).astype(np.float64))
    return calibration_bins(probability, np.concatenate([f["rank"] for f in fields]) == 1, bins=bins)


def step_confidence(shards: Shards, fields: Fields) -> dict[str, tuple[list[float], list[float]]]:
    """For each teacher (place of the step, 0 to 1; mean confidence of its tokens), in bins of places."""
    found: dict[str, list[tuple[float, float]]] = {}
    for number, of_trace in fields.items():
        encoded = shards.arrays(number)
        steps = encoded.step_id[encoded.num_prompt :]
        last = max(int(steps.max(initial=1)) - 1, 1)
        row = found.setdefault(shards.teachers[shards.index["teacher_id"][number]], [])
        row += [((step - 1) / last, float(of_trace["confidence"][steps == step].mean())) for step in np.unique(steps)]
    return {name: _binned(np.array(row)) for name, row in sorted(found.items())}


def _binned(points: np.ndarray) -> tuple[list[float], list[float]]:
    place = np.minimum((points[:, 0] * BINS).astype(int), BINS - 1)
    groups: list[Any] = [points[place == b] for b in np.unique(place)]
    return [float(g[:, 0].mean()) for g in groups], [float(g[:, 1].mean()) for g in groups]
