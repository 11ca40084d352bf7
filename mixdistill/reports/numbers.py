"""Numbers as text: "-" is no data."""

import math
from typing import Any

NO_DATA = "-"


def number(value: Any) -> str:
    """Three digits that matter, thousands with a comma; "-" for None and NaN."""
    if value is None or not math.isfinite(value):
        return NO_DATA
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def share(value: Any) -> str:
    """A percentage; "-" for None and NaN."""
    if value is None or not math.isfinite(value):
        return NO_DATA
    return f"{100 * value:.0f}%" if value >= 0.1 or value == 0 else f"{100 * value:.1f}%"
