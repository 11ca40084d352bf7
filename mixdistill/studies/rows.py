"""Rows on disk: one small file a row while a study runs, one runs.jsonl in the end. A row belongs to what it was made
by: the study's code, the arm, the seed and the size."""

import ast
import dataclasses
import hashlib
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixdistill.errors import UserError
from mixdistill.studies.study import Row, Study

FILE, ALL = "row.json", "runs.jsonl"
SAID = ("study", "verdict")  # functions of a study's file that no row depends on


def fingerprint(study: Study, arm: str, size: Any) -> str:
    """Of all that a row depends on beside its seed: changes with the code of the study's file (not with its words), its
    size, and the fingerprints of the arms that it needs."""
    needs = [fingerprint(study, needed, size) for needed in study.needs.get(arm, ())]
    parts = [study.name, arm, dataclasses.asdict(size), _code(study.module), needs]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _code(module: str) -> str:
    """A file without comments, docstrings and what only judges rows."""
    tree = ast.parse(Path(str(sys.modules[module].__file__)).read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if getattr(node, "name", None) not in SAID]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def to_json(row: Row, mark: str, seconds: float | None = None) -> dict[str, Any]:
    """JSON values; outcomes as a string of 0 and 1."""
    return {
        "arm": row.arm,
        "seed": row.seed,
        "fingerprint": mark,
        "numbers": {name: None if math.isnan(value) else float(value) for name, value in row.numbers.items()},
        "spent": {name: float(value) for name, value in row.spent.items()},
        "outcomes": {name: "".join("01"[bool(one)] for one in some) for name, some in row.outcomes.items()},
        "seconds": None if seconds is None else round(seconds, 1),
    }


def from_json(found: Mapping[str, Any]) -> Row:
    """Inverts `to_json`."""
    outcomes = {name: [digit == "1" for digit in text] for name, text in found["outcomes"].items()}
    numbers = {name: math.nan if value is None else value for name, value in found["numbers"].items()}
    return Row(found["arm"], found["seed"], outcomes, numbers, found["spent"])


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """To the bit, clocks apart."""
    return {**one, "seconds": None} == {**other, "seconds": None}


def write(path: Path, row: Mapping[str, Any]) -> None:
    """All of it or nothing."""
    write_text(path, json.dumps(row) + "\n")


def write_text(path: Path, text: str) -> None:
    """All of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read_all(path: Path) -> list[dict[str, Any]]:
    """The lines of a runs.jsonl; [] where there is none. Raises `UserError`, with the line, for what is not a row."""
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            from_json(row := json.loads(line))
        except (ValueError, KeyError, AttributeError, TypeError):
            raise UserError(f"{path}:{number} is not a row of a study; move the file away to begin anew") from None
        found.append(row)
    return found


def finished(study: Study, size: Any, results: Path, runs: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """(arm, seed) -> its row, of those that were made by the study as it is now, in files of RUNS or in RESULTS."""
    marks = {arm: fingerprint(study, arm, size) for arm in study.arms}
    files = sorted(runs.glob(f"*/{FILE}"))
    found = [*read_all(results / ALL), *(json.loads(path.read_text(encoding="utf-8")) for path in files)]
    return {(row["arm"], row["seed"]): row for row in found if row["fingerprint"] == marks.get(row["arm"])}


def in_order(study: Study, rows: Iterable[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """By arm, as the study lists them, and seed."""
    places = {arm: place for place, arm in enumerate(study.arms)}
    return sorted(rows, key=lambda row: (places[row["arm"]], row["seed"]))
