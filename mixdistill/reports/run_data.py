"""What runs left on disk, read back: metrics, evaluations, the recipe's text. Nothing that it names is imported."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mixdistill.errors import UserError
from mixdistill.recipe.read import read_value
from mixdistill.training.history import LEDGER, read_ledger
from mixdistill.training.hooks import METRICS_FILE, read_metrics
from mixdistill.training.spending import Spending, in_all
from mixdistill.training.workdir import RECIPE

MAX_DEPTH = 3  # folders below a study in which runs are looked for


class Run(NamedTuple):
    """One run's folder."""

    name: str
    path: Path
    recipe: str  # text
    lines: list[dict[str, Any]]  # of metrics.jsonl
    evaluations: list[dict[str, Any]]  # what `mixdistill eval --out` wrote into the folder, by train step

    @property
    def shards(self) -> tuple[str, ...]:
        """The folders that the first stage reads."""
        given = read_value(self.recipe, "stages.0.source.shards")
        return () if given is None else (given,) if isinstance(given, str) else tuple(given)

    @property
    def last(self) -> dict[str, Any]:
        """The last line, {} before there is one."""
        return self.lines[-1] if self.lines else {}

    @property
    def teachers(self) -> list[str]:
        """Those that the metrics have a number of, in their order."""
        rows = [line["metrics"]["teacher/nll"] for line in self.lines if _has(line, "teacher/nll")]
        return [name for name in (rows[0] if rows else {}) if any(row.get(name) is not None for row in rows)]

    @property
    def spending(self) -> Spending:
        """What it has cost so far."""
        return in_all(self.lines)

    @property
    def decisions(self) -> list[dict[str, Any]]:
        """The events of its ledger."""
        return [line for line in read_ledger(self.path / LEDGER) if "event" in line]

    def series(self, metric: str, key: str | None = None, x: str = "train_step") -> tuple[list[float], list[float]]:
        """(x, values) of a metric, or of its entry `key` (a teacher); lines without it are left out."""
        points = [(line[x], line["metrics"][metric]) for line in self.lines if metric in line["metrics"]]
        if key is not None:
            points = [(at, value[key]) for at, value in points if isinstance(value, Mapping) and key in value]
        return [at for at, _ in points], [value for _, value in points]

    def metrics(self, prefix: str) -> list[str]:
        """Names of metrics that begin so."""
        return sorted({name for line in self.lines for name in line["metrics"] if name.startswith(prefix)})

    def token_shares(self) -> dict[str, tuple[list[float], list[float | None]]]:
        """Each teacher's share of the tokens between two lines."""
        counted = [line for line in self.lines if _has(line, "teacher/nll")]
        counts = [line["weights"]["teacher/nll"] for line in counted]
        steps = [line["train_step"] for line in counted]
        totals = [sum(count.values()) for count in counts]
        return {
            name: (steps, [count[name] / total if total else None for count, total in zip(counts, totals, strict=True)])
            for name in self.teachers
        }


def find_runs(folder: Path) -> list[Run]:
    """The run in `folder`, or all runs below it. Raises `UserError` where there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give the --workdir of `mixdistill train`, or a folder of such folders")
    found = [folder] if (folder / RECIPE).is_file() else _below(folder)
    if not found:
        raise UserError(f"no run in {folder}: neither it nor a folder below it holds {RECIPE}")
    return [read_run(path, folder) for path in found]


def read_run(path: Path, study: Path) -> Run:
    """The run in `path`, named after its place in `study`."""
    name = path.name if path == study else str(path.relative_to(study))
    text = (path / RECIPE).read_text(encoding="utf-8")
    return Run(name, path, text, read_metrics(path / METRICS_FILE), _evaluations(path))


def _below(folder: Path) -> list[Path]:
    found = []
    for depth in range(1, MAX_DEPTH + 1):
        found += [path.parent for path in folder.glob("/".join("*" * depth) + f"/{RECIPE}")]
    return sorted(found)


def _evaluations(path: Path) -> list[dict[str, Any]]:
    found = []
    for file in sorted(path.glob("*.json")):
        try:
            row = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            continue
        if isinstance(row, dict) and "train_step" in row and ("answers" in row or "held_out" in row):
            found.append({"file": file.name, **row})
    return sorted(found, key=lambda row: (row["train_step"], row["file"]))


def _has(line: Mapping[str, Any], metric: str) -> bool:
    return isinstance(line["metrics"].get(metric), Mapping)


def finite(values: Sequence[Any]) -> list[float]:
    """Those that are numbers."""
    return [value for value in values if isinstance(value, int | float)]
