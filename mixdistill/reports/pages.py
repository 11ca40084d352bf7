"""The page of an inspection, section by section. What a run adds stands in `run_page.py`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixdistill.diagnostics.inspection import all_warnings
from mixdistill.reports import figures
from mixdistill.reports.numbers import share
from mixdistill.reports.page import Cell, Column, Figure, Line, Section, Table, cell, render, write
from mixdistill.reports.student_page import student_sections
from mixdistill.reports.viewer import choose_traces, trace_views
from mixdistill.traces.shards import Shards


def write_inspection(
    found: Mapping[str, Any], shards: Shards, path: Path, fields: Mapping[int, Any] | None = None
) -> None:
    """`found` as JSON values (`inspection.plain`). Raises `UserError` where the page cannot be written."""
    numbers = list(fields) if fields else choose_traces(shards)
    views = trace_views(shards, numbers, fields or {})
    title = f"{shards.path.name}: {len(found['teachers'])} teachers"
    subtitle = f"{found['traces']:,} traces, {found['tokens']:,} tokens, {found['problems']:,} problems"
    about = "A sample, the teachers in turn."
    write(path, render(title, subtitle, inspection_sections(found), views, about))


def inspection_sections(found: Mapping[str, Any]) -> list[Section]:
    """Everything but the traces."""
    teachers = found["teachers"]
    return [
        Section("teachers", "teachers", "Click a head to sort.", tables=[teacher_table(teachers)]),
        *student_sections(found),
        Section("conflict", "conflict", CONFLICT, figures=_conflict(found), lines=list(_clashes(found["clashes"]))),
        Section("groups", "groups that may be mixed", GROUPS, lines=[Line(_group(group)) for group in found["groups"]]),
        Section("form", "form", FORM, figures=list(_form(found)), tables=[_form_table(teachers)]),
        Section("warnings", "warnings", lines=[_warning(w) for w in all_warnings(found)]),
    ]


CONFLICT = (
    "How differently two teachers continue the same two content tokens, in bits above what chance does. A reason to "
    "look, not a verdict: another notation shows, too. Below, the worst contexts of the worst pairs."
)
GROUPS = "Best first; after each teacher the share of the problems that it adds to those before it."
FORM = "How they write. Form differs more than content does; that alone does no harm."


def teacher_table(teachers: Mapping[str, Any]) -> Table:
    """A row a teacher, with the verdict in words."""
    columns = [
        Column("teacher", is_text=True),
        Column("traces"),
        Column("right", about="share of the graded answers that are right"),
        Column("tokens", about="of the completion, median"),
        Column("length", about="median length over that of the middle teacher"),
        Column("steps", about="median"),
        Column("markers", about="epistemic markers (whole words) a 1000 words"),
        Column("conflicts", about="teachers that it conflicts with"),
        Column("verdict", is_text=True),
    ]
    rows = [
        [
            Cell(name),
            cell(row["traces"]),
            cell(row["accuracy"]["value"], share(row["accuracy"]["value"])),
            cell(row["length"]["median"]),
            cell(row["length"]["relative"], f"{row['length']['relative'] or 0:.1f}x"),
            cell(row["steps"]["median"]),
            cell(row["markers"]["whole_words_per_1000_words"]),
            cell(len(row["conflicts"])),
            Cell(row["verdict"]),
        ]
        for name, row in teachers.items()
    ]
    return Table("teachers", columns, rows)


def _conflict(found: Mapping[str, Any]) -> list[Figure]:
    pairs = found["pairs"]
    values = figures.array(pairs["conflict"])
    about = "Continuation conflict of every two teachers, in bits."
    return [figures.heat_map("conflict-map", about, pairs["teachers"], values, "bits", low=0, high=_top(values))]


def _clashes(clashes: Sequence[Mapping[str, Any]]):
    for clash in clashes:
        a, b = clash["teachers"]
        for context in clash["contexts"]:
            sides = (", ".join(f"{token!r} {p:.0%}" for token, p in side) for side in context["after"])
            more = "; ".join(f"{name}: {side}" for name, side in zip((a, b), sides, strict=True))
            yield Line(f"{a} / {b}, {clash['score']:.2f} bits, after", repr(context["text"]), more)


def _group(group: Mapping[str, Any]) -> str:
    adds = ", ".join(f"{added['teacher']} +{added['adds']:.1%}" for added in group["adds"])
    return f"{group['coverage']:.1%} of the problems: {adds}"


def _form(found: Mapping[str, Any]):
    teachers, pairs = found["teachers"], found["pairs"]
    names = list(teachers)
    rates = {name: row["markers"]["whole_words"] for name, row in teachers.items()}
    words = {name: max(sum(counts.values()), 1) for name, counts in rates.items()}
    per_1000 = {name: row["markers"]["whole_words_per_1000_words"] or 0 for name, row in teachers.items()}
    markers = {
        marker: {name: per_1000[name] * rates[name][marker] / words[name] for name in names}
        for marker in next(iter(rates.values()), {})
    }
    yield figures.bars(
        "markers", "Epistemic markers a 1000 words, by word and teacher.", markers, "markers a 1000 words"
    )
    behaviours = {
        behaviour: {name: row["behaviours"]["shares"][behaviour] for name, row in teachers.items()}
        for behaviour in ("deduction", "reflection", "exploration")
    }
    yield figures.bars("behaviours", "Share of steps of each behaviour.", behaviours, "share of steps", percent=True)
    spelling = figures.array(pairs["spelling"])
    about = "Jensen-Shannon distance of character trigrams between teachers."
    yield figures.heat_map("spelling", about, names, spelling, "distance", low=0, high=1)


def _form_table(teachers: Mapping[str, Any]) -> Table:
    columns = [
        Column("teacher", is_text=True),
        Column("answers", is_text=True, about="how the final answer is announced"),
        Column("length/difficulty", about="Spearman's correlation of length and the share of teachers that fail"),
        Column("loops"),
        Column("truncated"),
        Column("copies", about="traces that nearly repeat another teacher's"),
        Column("characters/token"),
        Column("think tags", is_text=True),
    ]
    rows = [
        [
            Cell(name),
            Cell(_listed(row["answer_formats"])),
            cell(row["length_against_difficulty"]["spearman"]),
            *(cell(value, share(value)) for value in (row["loops"], row["truncated"], row["copies"]["share"])),
            cell(row["characters_per_token"]),
            Cell(_listed(row["think_tags"])),
        ]
        for name, row in teachers.items()
    ]
    return Table("form", columns, rows)


def _listed(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share(value)}" for name, value in sorted(shares.items(), key=lambda item: -item[1]))


def _warning(found: Mapping[str, str]) -> Line:
    who = f"{found['teacher']} " if found["teacher"] else ""
    return Line(f"{who}{found['text']}", more=found["remedy"], level=found["level"])


def _top(values: np.ndarray) -> float:
    return float(max(np.nanmax(values, initial=0.0), 0.1))
