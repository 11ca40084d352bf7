"""The report card: an inspection on the terminal, a row a teacher, then what to look at and what to do."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mixdistill.diagnostics.inspection import all_warnings
from mixdistill.diagnostics.measures import MEASURES
from mixdistill.reports.numbers import number, share

SHOWN_ALIKE = 4
SHOWN_MEASURES = ("rank_surprisal_ratio", "grape", "local_naturalness", "aslec_drop", "ifd", "lowest_confidence")


def print_card(inspection: Mapping[str, Any], console: Console) -> None:
    """Everything that fits a terminal; the page and the JSON hold the rest."""
    console.print(Group(*_parts(inspection)))


def _parts(inspection: Mapping[str, Any]) -> Iterator[Any]:
    teachers = inspection["teachers"]
    yield Text(
        f"{inspection['traces']:,} traces of {len(teachers)} teachers on {inspection['problems']:,} problems, "
        f"{inspection['tokens']:,} tokens: {inspection['shards']}"
    )
    yield ""
    yield _form(teachers)
    if inspection["student"]:
        yield from ("", _student_line(inspection["student"]), _fit(teachers))
    yield from _clashes(inspection["clashes"])
    yield from _groups(inspection["groups"])
    yield from _warnings(inspection)


def _form(teachers: Mapping[str, Any]) -> Table:
    table = Table("teacher", box=None, header_style="bold", pad_edge=False)
    for title in ("traces", "right", "tokens", "steps", "markers", "answers"):
        table.add_column(title, justify="left" if title == "answers" else "right", no_wrap=True)
    table.add_column("verdict", overflow="fold", ratio=1)
    for name, row in teachers.items():
        most = max(row["answer_formats"].items(), key=lambda item: item[1], default=("", 0.0))
        table.add_row(
            escape(name),
            f"{row['traces']:,}",
            share(row["accuracy"]["value"]),
            number(row["length"]["median"]),
            number(row["steps"]["median"]),
            number(row["markers"]["whole_words_per_1000_words"]),
            f"{most[0]} {share(most[1])}",
            escape(row["verdict"]),
        )
    return table


def _student_line(student: Mapping[str, Any]) -> Text:
    line = f"student {student['name']}, {student['traces']:,} traces scored; 95 % intervals over problems"
    if not student["anchor_is_learned"]:
        line += (
            f". No undecidable disagreement: it knows {student['anchor']} best, at {student['anchor_content_nll']:.2f} "
            "nats a content token, and that is not learned"
        )
    return Text(line)


def _fit(teachers: Mapping[str, Any]) -> Table:
    known = [name for name in SHOWN_MEASURES if any(name in row.get("measures", {}) for row in teachers.values())]
    table = Table("teacher", box=None, header_style="bold", pad_edge=False)
    for name in known:
        arrow = {"low": " (low fits)", "high": " (high fits)"}.get(MEASURES[name].better, "")
        table.add_column(MEASURES[name].title + arrow, justify="right", no_wrap=True)
    table.add_column("undecidable", justify="right")
    for teacher, row in teachers.items():
        cells = [_interval(row.get("measures", {}).get(name)) for name in known]
        table.add_row(escape(teacher), *cells, _undecidable(row.get("undecidable")))
    return table


def _interval(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None or number(estimate["value"]) == "-":
        return "-"
    return f"{number(estimate['value'])} [{number(estimate['low'])}, {number(estimate['high'])}]".replace("[", r"\[")


def _undecidable(torn: Mapping[str, Any] | None) -> str:
    return "-" if torn is None else f"{number(torn['undecidable_late'])} {torn['verdict']}"


def _clashes(clashes: list[Mapping[str, Any]]) -> Iterator[Any]:
    if not clashes:
        return
    yield from ("", Text("where they clash: the same words, then", style="bold"))
    for clash in clashes[:3]:
        a, b = clash["teachers"]
        yield Text(f"{a} / {b}: {clash['score']:.2f} bits")
        for context in clash["contexts"][:3]:
            sides = " | ".join(", ".join(f"{token!r} {p:.0%}" for token, p in side) for side in context["after"])
            yield Text(f"  ...{context['text']!r} -> {sides}")


def _groups(groups: list[Mapping[str, Any]]) -> Iterator[Any]:
    if not groups:
        return
    yield from ("", Text("groups without a conflicting pair, best first", style="bold"))
    for group in groups[:3]:
        new = [f"{added['teacher']} +{added['adds']:.1%}" for added in group["adds"] if added["adds"] >= 0.0005]
        rest = len(group["adds"]) - len(new)
        more = f" and {rest} that add nothing" if rest else ""
        yield Text(f"  {group['coverage']:.1%} of the problems: {', '.join(new)}{more}")


def _warnings(inspection: Mapping[str, Any]) -> Iterator[Any]:
    """By kind: what to do is said once."""
    found = all_warnings(inspection)
    for level, style in (("warning", "yellow"), ("note", "dim")):
        of_level = [w for w in found if w["level"] == level]
        if of_level:
            yield from ("", Text(f"{len(of_level)} {level}{'s' * (len(of_level) > 1)}", style=f"bold {style}"))
        for code in dict.fromkeys(w["code"] for w in of_level):
            alike = [w for w in of_level if w["code"] == code]
            yield Text(f"  {code}: {alike[0]['remedy']}")
            yield from (Text(f"    {w['teacher']} {w['text']}".rstrip()) for w in alike[:SHOWN_ALIKE])
            if len(alike) > SHOWN_ALIKE:
                yield Text(f"    and {len(alike) - SHOWN_ALIKE} more teachers (--json has all)", style="dim")
