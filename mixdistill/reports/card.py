"""The report card: an inspection on the terminal, a row a teacher, then what to look at and what to do."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mixdistill.diagnostics.inspection import all_warnings
from mixdistill.diagnostics.measures import MEASURES
from mixdistill.diagnostics.undecidable import TAG_THRESHOLD, THRESHOLD
from mixdistill.reports.numbers import number, share

SHOWN_ALIKE = 4
SHOWN_TORN, SHOWN_PASSAGES = 4, 2  # teachers; of each
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
        yield from ("", _student_line(inspection["student"]))
        yield from _torn(teachers)
        yield from ("", Text("what misleads about mixtures, and is shown for what it is", style="bold"), _fit(teachers))
    yield from _pairwise(inspection["pairwise"])
    yield from _pilots(inspection["pilots"])
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
    for teacher, row in teachers.items():
        table.add_row(escape(teacher), *(_interval(row.get("measures", {}).get(name)) for name in known))
    return table


def _torn(teachers: Mapping[str, Any]) -> Iterator[Any]:
    """Undecidable disagreement: both of its factors, where in the traces it lies, and passages to look at."""
    torn = {name: row["undecidable"] for name, row in teachers.items() if row.get("undecidable")}
    if not torn:
        return
    anchor = next(iter(torn.values()))["anchor"]
    yield from ("", Text(f"undecidable disagreement with {anchor}: conflict above {THRESHOLD}", style="bold"))
    table = Table("teacher", box=None, header_style="bold", pad_edge=False)
    for title in ("late", "all", "disagrees", "decodable", "along the trace", *_second_titles(torn)):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("verdict")
    for name, row in torn.items():
        numbers = (row[k] for k in ("undecidable_late", "undecidable", "disagreement", "decodability"))
        along = " ".join(f"{part['undecidable']:.2f}" if part["num_tokens"] else "-" for part in row["profile"])
        table.add_row(escape(name), *map(number, numbers), along, *_second_cells(torn, row), escape(row["verdict"]))
    yield table
    yield from _passages(torn)


def _pairwise(rows: list[Mapping[str, Any]]) -> Iterator[Any]:
    """A line an anchor, a column a teacher: late undecidable disagreement."""
    if not rows:
        return
    cost = f"{len(rows)} pilots of {rows[0]['tokens']:,} tokens, {sum(row['seconds'] for row in rows):.0f} s"
    head = f"undecidable disagreement of every two, late; conflict above {THRESHOLD}; {cost}"
    yield from ("", Text(head, style="bold"))
    names = [row["anchor"] for row in rows]
    table = Table("anchor", box=None, header_style="bold", pad_edge=False)
    for name in names:
        table.add_column(escape(name), justify="right")
    table.add_column("")
    for row in rows:
        cells = [number(row["others"][n]["undecidable_late"]) if n in row["others"] else "-" for n in names]
        table.add_row(escape(row["anchor"]), *cells, "" if row["learned"] else "too short: not learned")
    yield table


def _second_titles(torn: Mapping[str, Any]) -> tuple[str, ...]:
    return (f"tag is worth (limit {TAG_THRESHOLD})",) if any("second_opinion" in row for row in torn.values()) else ()


def _second_cells(torn: Mapping[str, Any], row: Mapping[str, Any]) -> Iterator[str]:
    if _second_titles(torn):
        yield number(row["second_opinion"]["score"]) if "second_opinion" in row else "-"


def _passages(torn: Mapping[str, Any]) -> Iterator[Text]:
    """Of the teachers that clash; of the others there is --json."""
    worst = sorted(torn.items(), key=lambda item: -item[1]["undecidable_late"])
    for name, row in [item for item in worst if item[1]["conflict"] is not False][:SHOWN_TORN]:
        for passage in row["passages"][:SHOWN_PASSAGES]:
            student = f"the student {passage['student']!r} {passage['student_probability']:.0%}"
            yield Text(f"  ...{passage['before']!r} -> {name} {passage['writes']!r}, {student}")


def _pilots(pilots: list[Mapping[str, Any]]) -> Iterator[Any]:
    if not pilots:
        return
    cost = f"{len(pilots)} of {pilots[0]['tokens']:,} tokens, {sum(pilot['seconds'] for pilot in pilots):.0f} s"
    yield from ("", Text(f"pilots of the student: {cost}", style="bold"))
    table = Table("mix", box=None, header_style="bold", pad_edge=False)
    for title in ("right", "against the best of its teachers alone", "own NLL (nats)"):
        table.add_column(title, justify="right")
    table.add_column("")
    for pilot in pilots:
        gain = pilot["gain"]
        table.add_row(
            escape(" + ".join(pilot["teachers"])),
            "-" if pilot["accuracy"] is None else _share_interval(pilot["accuracy"]),
            "-" if gain is None else _gain(gain),
            ", ".join(f"{escape(name)} {number(nll)}" for name, nll in pilot["own_nll"].items()),
            "" if pilot["learned"] else "too short to tell",
        )
    yield table


def _gain(gain: Mapping[str, Any]) -> str:
    interval = f"[{gain['low']:+.2f}, {gain['high']:+.2f}]".replace("[", r"\[")
    return f"{gain['mean']:+.2f} {interval} {escape(gain['over'])}"


def _share_interval(found: Mapping[str, float]) -> str:
    return f"{found['mean']:.0%} [{found['low']:.0%}, {found['high']:.0%}]".replace("[", r"\[")


def _interval(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None or number(estimate["value"]) == "-":
        return "-"
    return f"{number(estimate['value'])} [{number(estimate['low'])}, {number(estimate['high'])}]".replace("[", r"\[")


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
