"""One self-contained page: plots, tables and traces in a single file that asks the network for nothing.

Whatever comes from data is escaped by the template or lies in JSON without a "<"; the page's own script puts it into
the document as text.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mixdistill.errors import UserError
from mixdistill.reports.numbers import number

SHOWN_LINES = 10  # of a list; the others unfold


@dataclasses.dataclass(frozen=True)
class Figure:
    """A plotly.js figure; `about` is what a screen reader says in its place."""

    id: str
    about: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    tall: bool = False
    many_labels: bool = False


@dataclasses.dataclass(frozen=True)
class Column:
    """A table's column; numbers first sort downwards, text upwards."""

    title: str
    is_text: bool = False
    about: str = ""


@dataclasses.dataclass(frozen=True)
class Cell:
    """What stands in a cell, and what it is sorted by: a number, "" for no data, None for text."""

    text: str
    value: float | str | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells; the first names the row."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


@dataclasses.dataclass(frozen=True)
class Line:
    """One entry of a list: text, a piece of a trace, a remark below. `level` "warning" sets it off."""

    text: str
    code: str = ""
    more: str = ""
    level: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading with what belongs to it."""

    id: str
    title: str
    about: str = ""
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    lines: Sequence[Line] = ()
    text: str = ""
    summary: str = ""


def cell(value: Any, text: str | None = None) -> Cell:
    """A number's cell; None and NaN are no data."""
    shown = number(value)
    return Cell("-", "") if shown == "-" else Cell(text or shown, float(value))


def render(
    title: str,
    subtitle: str,
    sections: Sequence[Section],
    traces: Sequence[Mapping[str, Any]] = (),
    traces_about: str = "",
) -> str:
    """The page. Raises `UserError` where plotly is not installed and there is something to plot."""
    sections = [s for s in sections if s.tables or s.figures or s.lines or s.text]
    figures = {
        figure.id: {"data": figure.data, "layout": figure.layout, "manyLabels": figure.many_labels}
        for section in sections
        for figure in section.figures
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_file("page.html")).render(
        title=title,
        subtitle=subtitle,
        sections=sections,
        traces=traces,
        traces_about=traces_about,
        shown_lines=SHOWN_LINES,
        css=Markup(_file("page.css")),
        js=Markup(_file("page.js")),
        plotly=Markup(_plotly()) if figures else "",
        figures_json=_json(figures),
        traces_json=_json(list(traces)),
    )


def write(path: Path, page: str) -> None:
    """All of it or nothing. Raises `UserError` where it cannot be written."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another file") from None


def _json(value: Any) -> Markup:
    """JSON that may stand in a script element: no "<" can end it, no line separator can break it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _plotly() -> str:
    try:
        return (resources.files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    except ModuleNotFoundError:
        raise UserError("the page needs plotly; install it with `pip install 'mixdistill[report]'`") from None


def _file(name: str) -> str:
    return (resources.files("mixdistill.reports") / name).read_text(encoding="utf-8")
