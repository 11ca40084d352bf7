"""What a student makes of the teachers, as sections of the page of an inspection."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mixdistill.diagnostics.measures import MEASURES
from mixdistill.diagnostics.undecidable import TAG_THRESHOLD, THRESHOLD
from mixdistill.reports import figures
from mixdistill.reports.numbers import number, share
from mixdistill.reports.page import Cell, Column, Figure, Line, Section, Table, cell

MISLEADING = "Known to mislead about mixtures: teachers that clash at few tokens agree at all others."


def student_sections(found: Mapping[str, Any]) -> list[Section]:
    """Nothing without a student."""
    if not found["student"]:
        return []
    return [_undecidable(found["teachers"]), _pairwise(found), _pilots(found["pilots"]), _fit(found)]


def _undecidable(teachers: Mapping[str, Any]) -> Section:
    """Both factors, where in the traces it lies, and passages to look at."""
    torn = {name: row["undecidable"] for name, row in teachers.items() if row["undecidable"]}
    anchor = next((row["anchor"] for row in torn.values()), "")
    about = (
        f"Where a student that has learned {anchor} would be torn: its confident disagreement with a teacher's tokens, "
        "times how little the last tokens tell whose style is being continued. High disagreement that is decodable is "
        f"another notation, and safe. Conflict: late above {THRESHOLD}; the sign counts, not the size."
    )
    curves = {
        name: (
            [(part["start"] + part["stop"]) / 2 for part in row["profile"]],
            [part["undecidable"] for part in row["profile"]],
        )
        for name, row in torn.items()
    }
    words = "Undecidable disagreement from the first token of the traces to the last, teacher by teacher."
    plot = figures.lines("undecidable-profile", words, curves, "place in the trace", "undecidable", share_x=True)
    tables, plots = ([_torn_table(torn)], [plot]) if torn else ([], [])
    return Section("undecidable", "undecidable disagreement", about, tables, plots, list(_passages(torn)))


def _pairwise(found: Mapping[str, Any]) -> Section:
    """Every teacher as the anchor of all others."""
    rows, names = found["pairwise"], found["pairs"]["teachers"]
    if not rows:
        return Section("pairwise", "teacher by teacher")
    unlearned = ", ".join(f"{row['anchor']} ({number(row['content_nll'])} nats)" for row in rows if not row["learned"])
    about = (
        "Undecidable disagreement (late) of the teacher below with a student of the teacher at the left; conflict "
        f"above {THRESHOLD}, the sign counts. Cost: {len(rows)} pilots of {rows[0]['tokens']:,} tokens, "
        f"{sum(row['seconds'] for row in rows):.0f} s."
        + (f" Not learned, so their rows are empty: {unlearned}." if unlearned else "")
    )
    columns = [
        Column("anchor", is_text=True),
        Column("teacher", is_text=True),
        *(Column(title) for title in ("late", "all", "disagreement", "decodability")),
        Column("verdict", is_text=True),
    ]
    parts = ("undecidable_late", "undecidable", "disagreement", "decodability")
    cells = [
        [Cell(row["anchor"]), Cell(name), *(cell(torn[part]) for part in parts), Cell(torn["verdict"])]
        for row in rows
        for name, torn in row["others"].items()
    ]
    known = [name for name in names if any(name == row["anchor"] or name in row["others"] for row in rows)]
    of = [names.index(name) for name in known]
    words = {
        "undecidable_late": "Undecidable disagreement (late): what harms.",
        "disagreement": "Disagreement alone: harmless where it is decodable.",
        "decodability": "Decodability of the disagreement from the last six tokens.",
    }
    plots = [
        figures.heat_map(
            f"pairs-{part}",
            f"{about} Down: the anchor; across: the teacher that its student reads.",
            known,
            figures.array(found["pairs"][part])[np.ix_(of, of)],
            "share",
            low=0,
            high=1 if part == "decodability" else 0.5,
        )
        for part, about in words.items()
    ]
    tables = [Table("undecidable disagreement, pair by pair", columns, cells)] if cells else []
    return Section("pairwise", "teacher by teacher", about, tables, plots if cells else [])


def _torn_table(torn: Mapping[str, Any]) -> Table:
    columns = [
        Column("teacher", is_text=True),
        Column("late", about="undecidable disagreement after the first third of the traces"),
        Column("all", about="undecidable disagreement over all counted tokens"),
        Column("disagreement", about="share of its content tokens that the student contradicts, sure of another one"),
        Column("decodability", about="how surely the last six tokens tell who writes, where it contradicts"),
        Column("tag is worth", about=f"nats, of two pilots, one of them told who writes; limit {TAG_THRESHOLD}"),
        Column("verdict", is_text=True),
    ]
    rows = [
        [
            Cell(name),
            *(cell(row[k]) for k in ("undecidable_late", "undecidable", "disagreement", "decodability")),
            cell(row.get("second_opinion", {}).get("score")),
            Cell(row["verdict"]),
        ]
        for name, row in torn.items()
    ]
    return Table("undecidable disagreement", columns, rows)


def _passages(torn: Mapping[str, Any]) -> Iterator[Line]:
    """Those of the worst teachers first."""
    for name, row in sorted(torn.items(), key=lambda item: -(item[1]["undecidable_late"] or 0)):
        for passage in row["passages"]:
            more = (
                f"the teacher: {passage['writes']!r}, which the student gives {passage['probability']:.1%}; "
                f"the student: {passage['student']!r} {passage['student_probability']:.0%}"
            )
            yield Line(f"{name}, problem {passage['problem']}, after", repr(passage["before"]), more)


def _pilots(pilots: Sequence[Mapping[str, Any]]) -> Section:
    """The pilot-mix table."""
    columns = [
        Column("mix", is_text=True),
        Column("right", about="share of held-out problems"),
        *(Column(title) for title in ("from", "to")),
        Column("gain", about="against the best of its teachers alone, problem by problem"),
        *(Column(f"gain {title}") for title in ("from", "to")),
        Column("own NLL", is_text=True, about="of each teacher's held-out content, nats a token"),
        Column("seconds"),
        Column("remark", is_text=True),
    ]
    rows = [
        [
            Cell(" + ".join(pilot["teachers"])),
            *(_percent((pilot["accuracy"] or {}).get(k)) for k in ("mean", "low", "high")),
            *(cell((pilot["gain"] or {}).get(k)) for k in ("mean", "low", "high")),
            Cell(", ".join(f"{name} {number(nll)}" for name, nll in pilot["own_nll"].items())),
            cell(pilot["seconds"]),
            Cell("" if pilot["learned"] else "too short to tell"),
        ]
        for pilot in pilots
    ]
    about = (
        "The student, trained a little on each mix. A pilot that is too short for its teachers ranks mixes wrongly. "
        f"Cost: {len(pilots)} pilots of {pilots[0]['tokens'] if pilots else 0:,} tokens, "
        f"{sum(pilot['seconds'] for pilot in pilots):.0f} s."
    )
    accuracies = {
        " + ".join(p["teachers"]): {"value": p["accuracy"]["mean"], **p["accuracy"]} for p in pilots if p["accuracy"]
    }
    plot = figures.points_with_intervals(
        "pilot-accuracy", "Held-out accuracy of every pilot.", accuracies, "share right"
    )
    return Section(
        "pilots", "pilots", about, [Table("pilots", columns, rows)] if rows else [], [plot] if accuracies else []
    )


def _percent(value: float | None) -> Cell:
    return cell(value, share(value))


def _fit(found: Mapping[str, Any]) -> Section:
    student, teachers = found["student"], found["teachers"]
    known = [m for m in (*MEASURES, "grace") if any(m in row["measures"] for row in teachers.values())]
    titles = {"grace": "GRACE", **{name: MEASURES[name].title for name in known if name in MEASURES}}
    abouts = {
        "grace": "tr(S_train^-1 S_test) of head gradients",
        **{n: MEASURES[n].about for n in known if n in MEASURES},
    }
    columns = [Column("teacher", is_text=True), *(Column(titles[m], about=abouts[m]) for m in known)]
    rows = [
        [Cell(name), *(cell((row["measures"].get(m) or {}).get("value")) for m in known)]
        for name, row in teachers.items()
    ]
    plots = [
        figures.points_with_intervals(
            f"fit-{m}",
            f"{titles[m]} of every teacher with 95 % intervals. {abouts[m]}",
            {name: row["measures"][m] for name, row in teachers.items() if row["measures"].get(m)},
            MEASURES[m].unit,
            note=f"{titles[m]}, ",
        )
        for m in ("rank_surprisal_ratio", "grape")
        if m in known
    ]
    learned = "" if student["anchor_is_learned"] else ", which is not learned: no undecidable disagreement"
    about = (
        f"{student['name']}: {student['traces']:,} traces. It knows {student['anchor']} best, at "
        f"{student['anchor_content_nll'] or 0:.2f} nats a content token{learned}. None of these ranks conflicting "
        "teachers right."
    )
    plots += _gradients(found["pairs"])
    return Section("fit", "what the student makes of them", about, [Table("fit", columns, rows)], plots)


def _gradients(pairs: Mapping[str, Any]) -> list[Figure]:
    """How the teachers' gradients agree: of the output head, sketched."""
    names = pairs["teachers"]
    cosine, rate = (figures.array(pairs[name]) for name in ("gradient_cosine", "gradient_conflict_rate"))
    of_means = f"Cosine between the teachers' mean gradients. {MISLEADING}"
    of_pairs = f"Share of pairs of traces whose gradients oppose each other, as PCGrad asks. {MISLEADING}"
    return [
        figures.heat_map("cosine", of_means, names, cosine, "cosine", low=-1, high=1, centre=True),
        figures.heat_map("conflict-rate", of_pairs, names, rate, "share", low=0, high=1),
    ]
