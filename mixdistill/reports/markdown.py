"""A run or a study in markdown, short enough for a pull request."""

from collections.abc import Iterator, Sequence

from mixdistill.reports.numbers import number, share
from mixdistill.reports.run_data import Run

MANY_TEACHERS = 6  # more have no column each
LITTLE = 0.05  # kept share below which a teacher hardly teaches


def summary(runs: Sequence[Run]) -> str:
    """A table, a row a run, and what deserves a look."""
    teachers = list(dict.fromkeys(name for run in runs for name in run.teachers))
    shown = teachers if len(teachers) <= MANY_TEACHERS else []
    head = ["run", "train steps", "tokens", "FLOPs", "loss", "kept", "accuracy", *(f"NLL {name}" for name in shown)]
    rows = [_cells(run, shown) for run in runs]
    lines = [_row(head), _row(["---", *["---:"] * (len(head) - 1)]), *map(_row, rows)]
    remarks = [f"- {remark}" for run in runs for remark in _remarks(run)]
    return "\n".join([*lines, *(["", *remarks] if remarks else [])])


def _cells(run: Run, teachers: Sequence[str]) -> list[str]:
    metrics = run.last.get("metrics", {})
    answers = [found["answers"]["accuracy"] for found in run.evaluations if found.get("answers")]
    accuracy = f"{answers[-1]['mean']:.3f} [{answers[-1]['low']:.3f}, {answers[-1]['high']:.3f}]" if answers else "-"
    nll = metrics.get("teacher/nll", {})
    return [
        run.name,
        number(run.last.get("train_step")),
        number(run.last.get("tokens")),
        f"{run.spending.flops:.3g}" if run.spending.flops else "-",
        number(metrics.get("loss")),
        share(metrics.get("kept")),
        accuracy,
        *(number(nll.get(name)) for name in teachers),
    ]


def _remarks(run: Run) -> Iterator[str]:
    skipped = sum(line["metrics"].get("optimizer/skipped") or 0 for line in run.lines)
    if skipped:
        yield f"{_safe(run.name)}: {number(skipped)} train steps were skipped"
    for one in run.decisions:
        if one["event"] == "admission":
            cost = f"{number(one['read'])} tokens read, {number(one['cpu_seconds'])} CPU seconds"
            yield f"{_safe(run.name)}: {_safe(one['reason'])} Cost: {cost}"
        if one["event"] == "pilots":
            away = f"; turned away: {', '.join(map(_safe, one['turned away']))}" if one["turned away"] else ""
            yield f"{_safe(run.name)}: pilots admitted {', '.join(map(_safe, one['admitted'])) or 'nobody'}{away}"
    kept = run.last.get("metrics", {}).get("teacher/kept") or {}
    little = [name for name, value in kept.items() if value is not None and value < LITTLE]
    if little:
        yield f"{_safe(run.name)}: the gates keep less than {share(LITTLE)} of {', '.join(map(_safe, little))}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_safe, cells))} |"


def _safe(text: str) -> str:
    """A name may hold what markdown or HTML would read as markup."""
    for character in "\\`*_{}[]<>|#":
        text = text.replace(
            character, f"\\{character}" if character not in "<>" else f"&{'lt' if character == '<' else 'gt'};"
        )
    return " ".join(text.split())
