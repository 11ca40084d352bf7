"""The page of a run or a study: what was trained, how it went, teacher by teacher."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mixdistill.reports import figures
from mixdistill.reports.numbers import number, share
from mixdistill.reports.page import Cell, Column, Figure, Line, Section, Table, cell
from mixdistill.reports.run_data import Run
from mixdistill.reports.student_page import MISLEADING
from mixdistill.training.goodput import sentence
from mixdistill.training.history import words

OF_TEACHERS = {  # metric with an entry a teacher -> title, axis, whether it is a share
    "teacher/nll": ("surprisal", "nats a token", False),
    "teacher/content_nll": ("surprisal of content tokens", "nats a token", False),
    "teacher/top1": ("token accuracy", "share of first choices that are right", True),
    "teacher/kept": ("kept by the gates", "share of tokens", True),
    "teacher/traces_kept": ("traces kept by the gates", "share of traces", True),
}


EVALUATION = "What mixdistill eval --out wrote into the run's folder, and what held-out problems said on the way."


def study_sections(runs: Sequence[Run]) -> list[Section]:
    """Every run in one table and one plot."""
    teachers = list(dict.fromkeys(name for run in runs for name in run.teachers))
    final = np.array([[_last(run, "teacher/nll", name) for name in teachers] for run in runs], np.float64)
    plots = [
        figures.lines(
            "loss",
            "Loss over tokens, a line a run.",
            {r.name: r.series("loss", x="tokens") for r in runs},
            "tokens",
            "loss, nats",
        )
    ]
    return [
        Section(
            "runs",
            "runs",
            "Click a head to sort. Numbers of the last line of each run's metrics.",
            [run_table(runs, final, teachers)],
            plots,
        ),
        Section("evaluation", "evaluation", tables=evaluation_tables(runs)),
    ]


def run_table(runs: Sequence[Run], final: np.ndarray, teachers: Sequence[str]) -> Table:
    """A row a run: how long, how far, and the surprisal of every teacher at the end."""
    columns = [
        Column("run", is_text=True),
        *(Column(title) for title in ("train steps", "tokens", "seconds")),
        Column("FLOPs", about="learning, drawing and answering, by one formula"),
        *(Column(title) for title in ("loss", "kept")),
        *(Column(name, about="nats a token at the end") for name in teachers),
    ]
    rows = [
        [
            Cell(run.name),
            *(cell(run.last.get(name)) for name in ("train_step", "tokens", "seconds")),
            cell(run.spending.flops or None, f"{run.spending.flops:.3g}"),
            cell(_last(run, "loss")),
            cell(_last(run, "kept"), share(_last(run, "kept"))),
            *(cell(value) for value in final[n]),
        ]
        for n, run in enumerate(runs)
    ]
    return Table("runs", columns, rows)


def run_sections(run: Run) -> list[Section]:
    """One run's curves."""
    loss = {name.removeprefix("loss/") or "loss": run.series(name) for name in ("loss", *run.metrics("loss/"))}
    curves = [figures.lines("loss", "Loss over train steps.", loss, "train step", "nats")]
    return [
        Section("loss", "loss", _about(run), figures=curves if run.lines else [], lines=_decisions(run)),
        Section("teachers", "teacher by teacher", _without_accuracy(run), figures=list(_of_teachers(run))),
        Section("gradients", "gradients", MISLEADING, figures=list(_gradients(run))),
        Section("gates", "gates", "Share of the valid tokens at which a gate is open.", figures=list(_gates(run))),
        Section("mixture", "mixture", "Where the tokens came from.", figures=list(_mixture(run))),
        Section("evaluation", "evaluation", EVALUATION, evaluation_tables([run]), evaluation_figures(run)),
        Section("recipe", "recipe", text=run.recipe, summary="every setting"),
    ]


def evaluation_tables(runs: Sequence[Run]) -> list[Table]:
    """What mixdistill eval --out wrote into the runs' folders."""
    columns = [Column("run", is_text=True), Column("task", is_text=True)]
    columns += [
        Column(t) for t in ("train step", "accuracy", "from", "to", "problems", "finished", "calibration error")
    ]
    rows = [
        [
            Cell(run.name),
            Cell(str(answers.get("task", found["file"]))),
            cell(found["train_step"]),
            *(cell(answers["accuracy"].get(name)) for name in ("mean", "low", "high")),
            *(cell(answers.get(name)) for name in ("num_problems", "finished", "calibration_error")),
        ]
        for run in runs
        for found in run.evaluations
        if (answers := found.get("answers"))
    ]
    held_out = [
        [
            Cell(f"{run.name}, {name}"),
            cell(found["train_step"]),
            *(cell(row.get(k)) for k in ("nll", "content_nll", "tokens")),
        ]
        for run in runs
        for found in run.evaluations
        for name, row in (found.get("held_out") or {}).items()
    ]
    titles = [
        Column("run, teacher", is_text=True),
        *(Column(t) for t in ("train step", "NLL", "content NLL", "tokens")),
    ]
    tables = [Table("answers", columns, rows), Table("held-out likelihood, nats a token", titles, held_out)]
    return [table for table in tables if table.rows]


def evaluation_figures(run: Run) -> list[Figure]:
    """Accuracy and held-out likelihood over train steps; how sure the answers of the last evaluations were."""
    answers = [(row["train_step"], row["answers"]) for row in run.evaluations if row.get("answers")]
    accuracy: dict[str, tuple[list[float], list[float]]] = {}
    for train_step, found in answers:
        x, y = accuracy.setdefault(str(found.get("task", "answers")), ([], []))
        x.append(train_step)
        y.append(found["accuracy"]["mean"])
    accuracy |= {name: run.series(name) for name in run.metrics("held_out/") if not name.endswith("/length")}
    nll: dict[str, tuple[list[float], list[float]]] = {}
    for row in run.evaluations:
        for name, held in (row.get("held_out") or {}).items():
            x, y = nll.setdefault(name, ([], []))
            x.append(row["train_step"])
            y.append(held["nll"])
    plots = []
    if accuracy:
        about = "Accuracy on held-out problems over train steps."
        plots.append(figures.lines("accuracy", about, accuracy, "train step", "share right", percent=True, whole=True))
    if nll:
        about = "Held-out surprisal over train steps, teacher by teacher."
        plots.append(figures.lines("held-out-nll", about, nll, "train step", "nats a token"))
    last = {
        str(found.get("task", "answers")): found
        for _, found in answers
        if any(b[2] for b in found.get("calibration", ()))
    }
    return plots + [_calibration(n, name, found) for n, (name, found) in enumerate(last.items())]


def _calibration(n: int, task: str, found: Mapping[str, Any]) -> Figure:
    about = (
        f"How often answers to {task} are right, against the probability that the student gave them. Expected "
        f"calibration error {number(found.get('calibration_error'))}."
    )
    return figures.calibration(
        f"answers-{n}", about, found["calibration"], "student", of="answers", x="probability of the answer"
    )


def _about(run: Run) -> str:
    last = run.last
    if not last:
        return "no metrics yet"
    skipped = sum(line["metrics"].get("optimizer/skipped") or 0 for line in run.lines)
    said = f"{number(last['train_step'])} train steps, {number(last['tokens'])} tokens, {number(last['seconds'])} s"
    said += f"; {number(skipped)} of them skipped" if skipped else ""
    cost = str(run.spending) if run.spending.flops else ""
    return "; ".join(filter(None, [said, sentence(run.lines), cost]))


def _decisions(run: Run) -> list[Line]:
    """Who was admitted, quarantined, let in again, and why."""
    return [Line(f"train step {one['train_step']}: {words(one)}") for one in run.decisions]


def _without_accuracy(run: Run) -> str:
    known = run.metrics("teacher/top1")
    return "" if known else 'Token accuracy is counted, too, where the objective has watch=("top1",).'


def _of_teachers(run: Run) -> list[Figure]:
    known = set(run.metrics("teacher/"))
    if not run.metrics("gate/"):
        known -= {"teacher/kept", "teacher/traces_kept"}  # without gates all is kept
    return [
        _by_teacher(run, metric, f"{title.capitalize()}, teacher by teacher.", axis, whole=percent)
        for metric, (title, axis, percent) in OF_TEACHERS.items()
        if metric in known
    ]


def _gradients(run: Run) -> Iterator[Figure]:
    """Where the run measured each teacher's gradient (`Stage(teacher_gradients=...)`)."""
    if run.metrics("teacher/gradient_cosine"):
        about = "Cosine of each teacher's gradient with that of the others."
        yield _by_teacher(run, "teacher/gradient_cosine", about, "cosine")
    if run.metrics("gradient/opposed"):
        opposed = {"opposed": run.series("gradient/opposed")}
        about = "Pairs of teachers whose gradients oppose each other: where PCGrad steps in."
        yield figures.lines("opposed", about, opposed, "train step", "share of pairs", percent=True, whole=True)


def _gates(run: Run) -> list[Figure]:
    together = {name.removeprefix("gate/"): run.series(name) for name in run.metrics("gate/")}
    if not together:
        return []
    whole = figures.lines(
        "gates-all", "Coverage of every gate.", together, "train step", "share open", percent=True, whole=True
    )
    return [
        whole,
        *(
            _by_teacher(run, name, f"Coverage of gate {name.removeprefix('teacher/gate/')}.", "share open", whole=True)
            for name in run.metrics("teacher/gate/")
        ),
    ]


def _mixture(run: Run) -> list[Figure]:
    shares = run.token_shares()
    plots = [
        figures.lines("mixture-shares", "Share of the tokens.", shares, "train step", "share of tokens", percent=True)
    ]
    routers = [
        _by_teacher(run, name, f"Weights that router {name.removeprefix('router/')} gave.", "weight")
        for name in run.metrics("router/")
    ]
    return (plots if shares else []) + routers


def _by_teacher(run: Run, metric: str, about: str, axis: str, *, whole: bool = False) -> Figure:
    series = {name: run.series(metric, name) for name in run.teachers}
    return figures.lines(metric.replace("/", "-"), about, series, "train step", axis, percent=whole, whole=whole)


def _last(run: Run, metric: str, key: str | None = None) -> float:
    value: Any = run.last.get("metrics", {}).get(metric)
    value = value.get(key) if isinstance(value, Mapping) else value
    return float("nan") if value is None else float(value)
