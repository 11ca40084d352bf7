"""A measure of `mixdistill inspect` as shares of a mixture: GRACE (arXiv:2511.02833), RSR, GRAPE or any other.

    found = json.loads(Path("inspect.json").read_text())          # mixdistill inspect SHARDS --student ... --json
    Mixture(shards="shards", weights=shares(found["teachers"], "grace"), ...)

Static, or the goal of `routers.scheduled`. All these measures rank teachers whose forms conflict wrongly, so keep those
apart first (docs/admission.md).
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mixdistill.diagnostics.measures import MEASURES
from mixdistill.errors import UserError, unknown

BETTER = {"grace": "low", **{name: measure.better for name, measure in MEASURES.items() if measure.better}}


def shares(teachers: Mapping[str, Mapping[str, Any]], measure: str, *, temperature: float = 1.0) -> dict[str, float]:
    """softmax(z / temperature), z the measure in standard deviations from the teachers' mean, the better the larger.

    `teachers` as in the JSON of an inspection with a student. One without data counts as the mean. Raises `UserError`
    for an unknown measure, one of which neither direction is better, and where fewer than two teachers have data.
    """
    if measure not in BETTER:
        raise unknown("measure with a better direction", measure, tuple(BETTER))
    if not temperature > 0:
        raise UserError(f"temperature is {temperature}; it must be positive")
    found = [(row.get("measures") or {}).get(measure, {}).get("value") for row in teachers.values()]
    value = np.array([math.nan if one is None else one for one in found], np.float64)
    known = np.isfinite(value)
    if known.sum() < 2:
        raise UserError(f"{int(known.sum())} of {len(value)} teachers have {measure}; inspect them with --student")
    z = np.where(known, value - value[known].mean(), 0.0) / max(value[known].std(), 1e-12)
    z = np.clip(-z if BETTER[measure] == "low" else z, -1e3, 1e3) / temperature
    weight = np.exp(z - z.max())
    return dict(zip(teachers, (weight / weight.sum()).tolist(), strict=True))
