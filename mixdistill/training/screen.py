"""The terminal: a progress bar, the loss, and a table with a line a teacher. Nothing else reads it."""

import math

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from mixdistill.optimizers import Budget
from mixdistill.training.hooks import Event, Hook, Speed, means, mfu_words

# Column title -> tally with an entry a teacher, and its form. A tally that an objective does not make has no column.
COLUMNS = {
    "nll (nats)": ("teacher/nll", "{:.3f}"),
    "content nll": ("teacher/content_nll", "{:.3f}"),
    "kept": ("teacher/kept", "{:.0%}"),
}


def screen(teachers: tuple[str, ...], budget: Budget, console: Console | None = None) -> Hook:
    """A live display from the start event to the end event."""
    bar = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(budget.unit.replace("_", " ")),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    task = bar.add_task("", total=budget.size, note="")
    live = Live(bar, console=console, refresh_per_second=4)
    speed = Speed()

    def hook(event: Event) -> None:
        rate = speed(event)
        if event.kind == "start":
            live.start()
        done = event.train_step if budget.unit == "train_steps" else event.tokens
        bar.update(task, completed=min(done, budget.size), description=event.stage)
        if event.kind == "log":
            numbers = means(event.tallies)
            words = [f"loss {numbers['loss']:.4f}"] + [f"{rate:,.0f} tokens/s"] * (rate > 0) + mfu_words(numbers)
            bar.update(task, note="  ".join(words))
            live.update(Group(bar, teacher_table(event, teachers)))
        if event.kind in ("end", "failed"):
            live.stop()

    return hook


def teacher_table(event: Event, teachers: tuple[str, ...]) -> Table:
    """Share of the tokens seen, and what the student makes of them, a line a teacher."""
    numbers = means(event.tallies)
    table = Table("teacher")
    columns = [(title, numbers[name], form) for title, (name, form) in COLUMNS.items() if name in numbers]
    if "teacher/tokens" in event.tallies:
        tokens = np.asarray(event.tallies["teacher/tokens"].sum)
        columns.insert(0, ("share", tokens / max(tokens.sum(), 1), "{:.0%}"))
    columns += [("weight", numbers[name], "{:.0%}") for name in numbers if name.startswith("router/")]
    for title, *_ in columns:
        table.add_column(title, justify="right")
    for index, teacher in enumerate(teachers):
        cells = (form.format(values[index]) if math.isfinite(values[index]) else "-" for _, values, form in columns)
        table.add_row(teacher, *cells)
    return table
