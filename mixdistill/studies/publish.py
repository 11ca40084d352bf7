"""What a study leaves in its folder of results: runs.jsonl, table.md, verdict.md, plot.png and report.html. All of it
follows from the rows."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mixdistill.evaluation.intervals import Interval
from mixdistill.studies import rows
from mixdistill.studies.results import Results
from mixdistill.studies.study import Measure, Study, Verdict

SPENT = ("tokens seen", "tokens trained", "flops")
COLOUR = "#4477aa"


def publish(study: Study, found: Sequence[dict[str, Any]], folder: Path) -> Verdict:
    """Writes all five files."""
    from mixdistill.reports import page

    lines, results = rows.in_order(study, found), results_of(study, found)
    verdict = study.verdict(results)
    rows.write_text(folder / rows.ALL, "".join(json.dumps(line) + "\n" for line in lines))
    rows.write_text(folder / "table.md", table(study, results))
    rows.write_text(folder / "verdict.md", verdict_page(study, results, verdict))
    draw(study, results, folder / "plot.png")
    page.write(folder / "report.html", report(study, results, verdict))
    return verdict


def results_of(study: Study, lines: Sequence[dict[str, Any]]) -> Results:
    """With the rows that are derived from others."""
    own = [rows.from_json(line) for line in rows.in_order(study, lines)]
    return Results([*own, *study.derive(own)])


def table(study: Study, results: Results) -> str:
    """As markdown: a row an arm, then the differences."""
    head = ["| difference | of | mean [95 %, other seeds and problems] | bootstrap |", "|---|---|---:|---:|"]
    differences = [f"| {' | '.join(cells)} |" for cells in _differences(study, results)]
    notes = [study.notes] if study.notes else []
    return "\n".join([*_arms(study, results), "", *head, *differences, *notes]) + "\n"


def _arms(study: Study, results: Results) -> Iterator[str]:
    known = [what for what in SPENT if any(what in row.spent for row in results.rows)]
    yield "| arm | seeds | " + " | ".join([*(m.title for m in study.measures), *known]) + " |"
    yield "|---|---:|" + "---:|" * (len(study.measures) + len(known))
    for arm in results.arms:
        cells = [shown(results.interval(arm, m.name), m.places) for m in study.measures]
        cells += [_amount(results.spent(arm, what)) for what in known]
        yield f"| {arm} | {len(results.seeds(arm))} | " + " | ".join(cells) + " |"


def _differences(study: Study, results: Results) -> Iterator[tuple[str, str, str, str]]:
    """The pair, the measure, the mean and the bootstrap's interval; none without data."""
    titles = {measure.name: measure for measure in study.measures}
    for one, other, name in study.comparisons:
        found, drawn = results.difference(one, other, name), results.resampled(one, other, name)
        if math.isnan(found.mean):
            continue
        places = titles[name].places
        between = f"[{drawn.low:+.{places}f}, {drawn.high:+.{places}f}]"
        yield f"{one} - {other}", titles[name].title, shown(found, places, signed=True), between


def shown(found: Interval, places: int = 3, *, signed: bool = False) -> str:
    """A mean with its interval; "-" for no data."""
    if math.isnan(found.mean):
        return "-"
    sign = "+" if signed else ""
    mean, low, high = (f"{value:{sign}.{places}f}" for value in found)
    return mean if math.isnan(found.low) else f"{mean} [{low}, {high}]"


def signed(found: Interval, places: int = 3) -> str:
    """A difference with its interval."""
    return shown(found, places, signed=True)


def _amount(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if value < 1e9 else f"{value:.2e}"


def verdict_page(study: Study, results: Results, verdict: Verdict) -> str:
    """As markdown."""
    seeds = sorted({row.seed for row in results.rows})
    parts = [
        f"# {study.question}",
        f"**{verdict.outcome}.** {verdict.words}",
        verdict.more,
        f"Expected: {study.expected}",
        f"Decides: {study.decides}",
        f"Sources: {', '.join(study.sources)}. Seeds: {', '.join(map(str, seeds))}. "
        f"Again: `mixdistill sweep {study.name}`.",
        "## Arms",
        "\n".join(f"- **{arm}**: {about}" for arm, about in study.arms.items()),
        "## Table",
        table(study, results).rstrip(),
        "![plot](plot.png)",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def draw(study: Study, results: Results, path: Path) -> None:
    """A panel a measure: every arm's mean, its interval, and a dot a seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measures = [m for m in study.measures if any(not math.isnan(results.mean(arm, m.name)) for arm in results.arms)]
    columns = min(len(measures), 4)
    lines = math.ceil(len(measures) / columns)
    size = (1.6 + 3.0 * columns, lines * (1.0 + 0.3 * len(results.arms)))
    figure, axes = pyplot.subplots(lines, columns, figsize=size, sharey=True, squeeze=False)
    for panel, measure in zip(axes.flat, measures, strict=False):
        _panel(panel, results, measure)
    for panel in axes.flat[len(measures) :]:
        panel.set_visible(False)
    axes[0, 0].set_yticks(range(len(results.arms)), results.arms)
    axes[0, 0].invert_yaxis()
    figure.suptitle(study.question, fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def _panel(panel: Any, results: Results, measure: Measure) -> None:
    for place, arm in enumerate(results.arms):
        found = results.interval(arm, measure.name)
        if math.isnan(found.mean):
            continue
        values = results.values(arm, measure.name)
        panel.plot(values, [place] * len(values), "o", color=COLOUR, alpha=0.3, markersize=4, markeredgewidth=0)
        if not math.isnan(found.low):
            panel.plot([found.low, found.high], [place, place], color=COLOUR, linewidth=1.5)
        panel.plot([found.mean], [place], "D", color=COLOUR, markersize=5)
    panel.set_title(measure.title, fontsize=10)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="x", alpha=0.25)


def report(study: Study, results: Results, verdict: Verdict) -> str:
    """The page: sortable tables and the same plot to hover over."""
    from mixdistill.reports import figures
    from mixdistill.reports.page import Cell, Column, Line, Section, Table, cell, render

    columns = [Column("arm", is_text=True), *(Column(m.title) for m in study.measures), *(Column(s) for s in SPENT)]
    body = [
        [
            Cell(arm),
            *(_cell(results.interval(arm, m.name), m.places) for m in study.measures),
            *(cell(results.spent(arm, what), _amount(results.spent(arm, what))) for what in SPENT),
        ]
        for arm in results.arms
    ]
    plots = []
    for number, measure in enumerate(study.measures):
        found = {arm: results.interval(arm, measure.name) for arm in results.arms}
        known = {
            arm: {"value": one.mean, "low": _or(one.low, one.mean), "high": _or(one.high, one.mean)}
            for arm, one in found.items()
        }
        if any(not math.isnan(one.mean) for one in found.values()):
            about = f"{measure.title} of every arm, with its interval."
            plots.append(figures.points_with_intervals(f"measure-{number}", about, known, measure.title))
    heads = [Column(title, is_text=True) for title in ("difference", "of", "mean [95 %]", "bootstrap")]
    told = [
        Line(text)
        for text in (verdict.words, verdict.more, f"Expected: {study.expected}", f"Decides: {study.decides}")
        if text
    ]
    sections = [
        Section("verdict", verdict.outcome, lines=told),
        Section("arms", "arms", "Click a head to sort.", [Table("arms", columns, body)], plots),
        Section(
            "differences",
            "differences",
            "Paired by seed and problem; the first interval is for other seeds and problems.",
            [Table("differences", heads, [[Cell(text) for text in row] for row in _differences(study, results)])],
        ),
        Section("about", "what the arms are", lines=[Line(f"{arm}: {about}") for arm, about in study.arms.items()]),
    ]
    return render(study.question, f"study {study.name}", sections)


def _cell(found: Interval, places: int) -> Any:
    from mixdistill.reports.page import cell

    return cell(found.mean, shown(found, places))


def _or(value: float, other: float) -> float:
    return other if math.isnan(value) else value
