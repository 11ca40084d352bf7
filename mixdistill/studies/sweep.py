"""Run a study: every arm with every seed that has no row yet; data of a seed first, arms that need others last."""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mixdistill.studies import rows
from mixdistill.studies.crew import Crew, Job, Report
from mixdistill.studies.study import Cell, Row, Study, load_study

READY = "ready.json"  # in a seed's data, last of all
Key = tuple[str, int]  # arm, seed


class Sweep(NamedTuple):
    """A study as it is run: how large, and where to."""

    name: str  # as `load_study` takes it
    study: Study
    size: Any
    results: Path  # what is kept
    runs: Path  # data, checkpoints, rows so far

    def finished(self) -> dict[Key, dict[str, Any]]:
        """The rows that are there already."""
        return rows.finished(self.study, self.size, self.results, self.runs)

    def missing(self, arms: Sequence[str] | None, seeds: Sequence[int]) -> list[Key]:
        """What is to be run, seed by seed. Raises `UserError` for an unknown arm."""
        have, wanted = self.finished(), self.study.choose(arms)
        return [(arm, seed) for seed in seeds for arm in wanted if (arm, seed) not in have]


def sweep(what: Sweep, todo: Sequence[Key], jobs: int) -> None:
    """Makes these rows; each is on disk as soon as it is there. `jobs` processes, 0: this one. Raises
    `KeyboardInterrupt` when it was interrupted: the rows so far stay."""
    seeds = list(dict.fromkeys(seed for _, seed in todo))
    with Crew(jobs, len(seeds) + len(todo), compiled=what.runs / "compiled") as crew:
        crew.do([Job(f"data of seed {seed}", prepare, (what._replace(study=None), seed)) for seed in seeds])
        for wave in _waves(what.study, todo):
            have = what.finished()
            crew.do([_job(what, key, have) for key in wave])


def _waves(study: Study, todo: Sequence[Key]) -> Iterator[list[Key]]:
    """In such an order that what is needed is there."""
    left = list(todo)
    while left:
        arms = {arm for arm, _ in left}
        ready = [key for key in left if not arms & {*study.needs.get(key[0], ())}]
        assert ready, f"arms of study {study.name} need each other"
        yield ready
        left = [key for key in left if key not in ready]


def _job(what: Sweep, key: Key, have: dict[Key, dict[str, Any]]) -> Job:
    arm, seed = key
    needed = [have[name, seed] for name in what.study.needs.get(arm, ())]
    return Job(f"{arm}, seed {seed}", make_row, (what._replace(study=None), arm, seed, needed))


def prepare(what: Sweep, seed: int, report: Report) -> Path:
    """The data of a seed, made if they are not there; another process may be making them, too."""
    study, folder = load_study(what.name), what.runs / f"seed-{seed}"
    mark = {"fingerprint": rows.fingerprint(study, "", what.size)}
    ready = folder / READY
    if ready.is_file() and json.loads(ready.read_text(encoding="utf-8")) == mark:
        return folder
    what.runs.mkdir(parents=True, exist_ok=True)
    own = Path(tempfile.mkdtemp(prefix=f".seed-{seed}-", dir=what.runs))
    study.prepare(seed, what.size, own, report)
    rows.write_text(own / READY, json.dumps(mark))
    shutil.rmtree(folder, ignore_errors=True)
    try:
        own.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(own)
    return folder


def make_row(what: Sweep, arm: str, seed: int, needed: Sequence[dict[str, Any]], report: Report) -> Row:
    """One arm with one seed."""
    study, folder, began = load_study(what.name), what.runs / f"{arm}-{seed}", time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    needs = {row["arm"]: rows.from_json(row) for row in needed}
    cell = Cell(arm, seed, what.size, what.runs / f"seed-{seed}", folder, needs, report)
    row = study.run(cell)
    assert (row.arm, row.seed) == (arm, seed)
    made = rows.to_json(row, rows.fingerprint(study, arm, what.size), time.perf_counter() - began)
    rows.write(folder / rows.FILE, made)
    return row


def check(what: Sweep, key: Key) -> bool:
    """Whether the row that RESULTS holds comes out again, to the bit. Raises `KeyError` where it holds none."""
    kept = what.finished()[key]
    with tempfile.TemporaryDirectory() as folder:
        again = what._replace(results=Path(folder) / "results", runs=Path(folder) / "runs")
        todo = [(arm, key[1]) for arm in what.study.choose([key[0]])]
        sweep(again, todo, jobs=1)
        return rows.same(kept, again.finished()[key])
