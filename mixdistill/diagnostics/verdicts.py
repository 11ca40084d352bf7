"""From numbers to words: what is worth saying of a teacher, and what to do about it."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from mixdistill.diagnostics.groups import THRESHOLD
from mixdistill.diagnostics.measures import MEASURES
from mixdistill.diagnostics.undecidable import THRESHOLD as THRESHOLD_LATE

# Above these a share or a ratio is worth a warning. Chosen for taste, not derived; each is printed with the warning.
LONG, SHORT = 2.0, 0.5  # median length over the middle teacher's
LOOPS, TRUNCATED, COPIES, MIXED_ANSWERS, TAGS = 0.01, 0.02, 0.05, 0.1, 0.01
FEW = 100  # traces
WRONG = 0.3
COMPARED = 0.05  # of the mass: pairs that share less local text say little


class Finding(NamedTuple):
    """`level` "warning" counts under --strict; "note" does not."""

    level: Literal["warning", "note"]
    code: str
    text: str
    remedy: str


def teacher_warnings(row: Mapping[str, Any]) -> list[Finding]:
    """What stands out in one teacher's traces (`describe_teachers`, with its conflicts)."""
    return [*_conflicts(row), *_damage(row), *_habits(row), *_amount(row)]


def verdict(name: str, row: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """One line in words: length, fit, conflicts, and what is broken."""
    words = [*_torn_words(row), *_length_words(row), *_fit_words(name, rows), *_hedge_words(row, rows)]
    words += _conflict_words(row)
    words += [found["text"] for found in row.get("warnings", ()) if found["code"] in ("loops", "truncated", "wrong")]
    return "; ".join(words) or "unremarkable"


def _conflicts(row: Mapping[str, Any]) -> Iterator[Finding]:
    if found := row.get("conflicts", ()):
        worst = ", ".join(f"{f['with']} ({f['score']:.2f} bits over {f['shared']:.0%})" for f in found[:3])
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        yield Finding(
            "warning",
            "conflict",
            f"continues the same text otherwise than {worst}{more}; {THRESHOLD} bits or less are chance and taste",
            "look at the contexts shown; train one of the two, or a group, and compare",
        )
    torn = row.get("undecidable")
    if torn and torn["conflict"] is None and "second_opinion" in torn:
        yield Finding(
            "note",
            "undecided",
            f"two opinions differ on whether it conflicts with {torn['anchor']}: {torn['undecidable_late']:.2f} by "
            f"disagreement, {torn['second_opinion']['score']:.2f} nats by a tag",
            "look at the passages; train with it and without, and compare",
        )
    if torn and torn["conflict"]:
        yield Finding(
            "warning",
            "undecidable",
            f"the student would be torn between it and {torn['anchor']}: {torn['undecidable_late']:.2f}",
            "train without it, or with a tag in the prompt that names the teacher",
        )


def _damage(row: Mapping[str, Any]) -> Iterator[Finding]:
    if row["loops"] >= LOOPS:
        yield Finding(
            "warning", "loops", f"{row['loops']:.1%} of its traces end in a loop", "leave them out: they teach looping"
        )
    if row["truncated"] >= TRUNCATED:
        yield Finding(
            "warning",
            "truncated",
            f"{row['truncated']:.1%} of its traces stop unfinished",
            "leave them out, or generate again with a larger token limit",
        )
    accuracy = row["accuracy"]["value"]
    if not math.isnan(accuracy) and 1 - accuracy >= WRONG:
        yield Finding(
            "note",
            "wrong",
            f"{1 - accuracy:.0%} of its answers are wrong",
            'keep the right ones with verdicts=("correct",) in the mixture, and compare: wrong traces hurt little',
        )
    if row["copies"]["share"] >= COPIES or row["duplicates"] >= COPIES:
        share, whom = max((row["copies"]["share"], "other teachers'"), (row["duplicates"], "its own"))
        yield Finding(
            "note",
            "duplicates",
            f"{share:.0%} of its traces nearly repeat {whom}",
            "they count twice: lower its weight",
        )


def _habits(row: Mapping[str, Any]) -> Iterator[Finding]:
    tags = row["think_tags"]
    half = {state: tags.get(state, 0.0) for state in ("unopened", "unclosed") if tags.get(state, 0.0) >= TAGS}
    for state, share in half.items():
        missing = "<think>" if state == "unopened" else "</think>"
        yield Finding(
            "warning",
            "think tags",
            f"{share:.0%} of its traces lack {missing}",
            "its chat template wrote the tag: prepare with a --template that ends in it, or add it to the traces"
            if state == "unopened"
            else "leave them out: the thinking never ends",
        )
    formats = row["answer_formats"]
    if formats and 1 - max(formats.values()) >= MIXED_ANSWERS:
        most = ", ".join(
            f"{name} {share:.0%}" for name, share in sorted(formats.items(), key=lambda item: -item[1])[:3]
        )
        yield Finding("note", "answers", f"announces its answer in several ways: {most}", "the student will, too")
    if row["control_tokens"]:
        token, count = max(row["control_tokens"].items(), key=lambda item: item[1])
        yield Finding(
            "warning",
            "control tokens",
            f"{count} of its traces have {token} in the text",
            "a chat template was written out: clean the traces before prepare",
        )


def _amount(row: Mapping[str, Any]) -> Iterator[Finding]:
    if row["traces"] < FEW:
        yield Finding(
            "note", "few", f"only {row['traces']} traces", "its numbers are rough; the intervals say how rough"
        )


def _torn_words(row: Mapping[str, Any]) -> Iterator[str]:
    """Undecidable disagreement comes first: it is the one number that has told harm from another notation."""
    torn = row.get("undecidable")
    if torn and torn["conflict"]:
        yield f"clashes undecidably with {torn['anchor']} ({torn['undecidable_late']:.2f}, limit {THRESHOLD_LATE})"
    elif torn and torn["verdict"] not in ("no data", "no disagreement"):
        yield f"{torn['verdict']} beside {torn['anchor']} ({torn['undecidable_late']:.2f})"


def _length_words(row: Mapping[str, Any]) -> Iterator[str]:
    relative = row["length"]["relative"]
    if relative >= LONG:
        yield f"{relative:.1f}x longer"
    elif 0 < relative <= SHORT:
        yield f"{1 / relative:.1f}x shorter"


def _fit_words(name: str, rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Only where the interval lies outside all others'."""
    for measure in ("rank_surprisal_ratio", "surprisal"):
        found = {teacher: row["measures"].get(measure) for teacher, row in rows.items() if row.get("measures")}
        others = [e for teacher, e in found.items() if teacher != name and e and not math.isnan(e["value"])]
        own = found.get(name)
        if not own or math.isnan(own["value"]) or not others:
            continue
        if own["low"] > max(e["high"] for e in others):
            yield f"lowest fit by {MEASURES[measure].title} ({own['value']:.2f})"
        elif own["high"] < min(e["low"] for e in others):
            yield f"best fit by {MEASURES[measure].title} ({own['value']:.2f})"


def _hedge_words(row: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    rates = [other["markers"]["whole_words_per_1000_words"] for other in rows.values()]
    own, middle = row["markers"]["whole_words_per_1000_words"], float(np.nanmedian(rates)) if rates else math.nan
    if own >= 5 and own >= 3 * middle:
        yield f"hedges ({own:.0f} markers a 1000 words)"


def _conflict_words(row: Mapping[str, Any]) -> Iterator[str]:
    found = row.get("conflicts", ())
    if found:
        worst = max(found, key=lambda f: f["score"])
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        yield f"conflicts with {worst['with']}{more} ({worst['score']:.2f} bits over {worst['shared']:.0%} shared text)"
