"""The plots: plotly.js figures as plain data. Colours of the ground and the text are the page's; NaN is a gap."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mixdistill.reports.page import Figure

# Okabe and Ito's colours, told apart with every kind of colour vision; dashes tell the next rounds apart.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C8C8C")
DASHES = ("solid", "dash", "dot", "dashdot")
MAX_POINTS, ALL_POINTS = 500, 20_000  # of one line, and of a plot; more are thinned out evenly: no screen shows them

Series = Mapping[str, tuple[Sequence[float], Sequence[float | None]]]  # name -> x, y


def lines(
    id: str,
    about: str,
    series: Series,
    x: str,
    y: str,
    *,
    percent: bool = False,
    whole: bool = False,
    share_x: bool = False,
) -> Figure:
    """A line for each series. `percent`: y is a share; `whole`: all of its range is shown; `share_x`: x is a share."""
    most = min(MAX_POINTS, max(ALL_POINTS // max(len(series), 1), 2))
    data = [
        {"type": "scatter", "mode": "lines", "name": label(name), "line": style(n), **_points(*points, most)}
        for n, (name, points) in enumerate(series.items())
    ]
    vertical: dict[str, Any] = {"title": {"text": y}}
    vertical |= {"tickformat": ".0%", "rangemode": "tozero"} if percent else {}
    vertical |= {"range": [0, 1.02]} if whole else {}
    across = {"title": {"text": x}, **({"range": [-0.02, 1.02]} if share_x else {})}
    return Figure(id, about, data, {**_margins(), "xaxis": across, "yaxis": vertical})


def heat_map(
    id: str,
    about: str,
    names: Sequence[str],
    values: np.ndarray,
    unit: str,
    *,
    low: float,
    high: float,
    centre: bool = False,
) -> Figure:
    """A square of teachers against teachers."""
    table = [[_gap(value) for value in row] for row in np.asarray(values, np.float64)]
    data = [
        {
            "type": "heatmap",
            "x": [label(name) for name in names],
            "y": [label(name) for name in names],
            "z": table,
            "zmin": low,
            "zmax": high,
            "colorscale": "RdBu" if centre else "Cividis",
            "colorbar": {"title": {"text": unit}, "thickness": 12},
            "hovertemplate": "%{y}<br>%{x}<br>%{z:.3f} " + unit + "<extra></extra>",
        }
    ]
    axis = {"tickangle": -45, "constrain": "domain"}
    layout = {**_margins(), "xaxis": axis, "yaxis": {"autorange": "reversed", "constrain": "domain"}}
    return Figure(id, about, data, layout, tall=len(names) > 8, many_labels=len(names) > 8)


def points_with_intervals(
    id: str, about: str, rows: Mapping[str, Mapping[str, float]], unit: str, *, note: str = ""
) -> Figure:
    """A value and its interval for each teacher (`Estimate._asdict()`), sorted; those without data are left out."""
    known = {name: row for name, row in rows.items() if not _is_gap(row["value"])}
    names = sorted(known, key=lambda name: known[name]["value"])
    values = [known[name]["value"] for name in names]
    error = {
        "type": "data",
        "symmetric": False,
        "array": [0 if _is_gap(known[n]["high"]) else known[n]["high"] - known[n]["value"] for n in names],
        "arrayminus": [0 if _is_gap(known[n]["low"]) else known[n]["value"] - known[n]["low"] for n in names],
    }
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": values,
            "y": [label(name) for name in names],
            "error_x": error,
            "marker": {"color": COLORS[0], "size": 8},
            "showlegend": False,
        }
    ]
    layout = {**_margins(), "xaxis": {"title": {"text": f"{note}{unit}"}}, "yaxis": {"type": "category"}}
    return Figure(id, about, data, layout, tall=len(names) > 12, many_labels=len(names) > 12)


def calibration(
    id: str, about: str, bins: Sequence[Sequence[float]], name: str, *, of: str = "tokens", x: str = "probability"
) -> Figure:
    """(mean confidence, share that is right, count `of` what) of each bin, against the diagonal."""
    filled = [b for b in bins if b[2]]
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "calibrated",
            "x": [0, 1],
            "y": [0, 1],
            "line": {"color": COLORS[6], "dash": "dash"},
        },
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "x": [round(b[0], 4) for b in filled],
            "y": [round(b[1], 4) for b in filled],
            "customdata": [b[2] for b in filled],
            "hovertemplate": "confidence %{x:.2f}<br>right %{y:.2f}<br>%{customdata} " + of + "<extra></extra>",
            "line": style(0),
        },
    ]
    share = {"range": [-0.01, 1.02], "tickformat": ".0%"}
    across, up = ({"title": {"text": t}, **share} for t in (x, "share that is right"))
    return Figure(id, about, data, {**_margins(), "xaxis": across, "yaxis": up})


def bars(id: str, about: str, series: Mapping[str, Mapping[str, float]], unit: str, *, percent: bool = False) -> Figure:
    """Stacked bars: series -> {teacher: value}."""
    data = [
        {
            "type": "bar",
            "name": label(name),
            "orientation": "h",
            "y": [label(teacher) for teacher in row],
            "x": [_gap(value) for value in row.values()],
            "marker": {"color": COLORS[n % len(COLORS)]},
        }
        for n, (name, row) in enumerate(series.items())
    ]
    count = max((len(row) for row in series.values()), default=0)
    x = {"title": {"text": unit}, **({"tickformat": ".0%"} if percent else {})}
    layout = {**_margins(), "barmode": "stack", "xaxis": x, "yaxis": {"autorange": "reversed"}}
    return Figure(id, about, data, layout, tall=count > 12, many_labels=count > 12)


def array(rows: Sequence[Sequence[float | None]]) -> np.ndarray:
    """float64, NaN where there is None."""
    return np.array([[np.nan if value is None else value for value in row] for row in rows], np.float64)


def label(name: str) -> str:
    """A name as plotly shows it: it reads a little HTML in labels, and names of teachers are data."""
    return name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def style(n: int) -> dict[str, Any]:
    """Colour and dash of the n-th line."""
    return {"color": COLORS[n % len(COLORS)], "dash": DASHES[n // len(COLORS) % len(DASHES)], "width": 2}


def _points(x: Sequence[float], y: Sequence[float | None], most: int) -> dict[str, Any]:
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), most)).astype(int)) if len(x) else []
    return {
        "x": [x[i] for i in kept],
        "y": [_gap(y[i]) for i in kept],
        "mode": "lines+markers" if len(x) < 3 else "lines",
    }


def _is_gap(value: Any) -> bool:
    return value is None or not math.isfinite(value)


def _gap(value: Any) -> float | None:
    return None if _is_gap(value) else round(float(value), 5)


def _margins() -> dict[str, Any]:
    return {"margin": {"l": 60, "r": 20, "t": 20, "b": 64}, "hovermode": "closest"}
