"""What `mixdistill doctor` looks at in a run's folder, and what it can put right."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from mixdistill.training.checkpoint import FOLDER, Checkpoints, Damaged, saved_train_steps
from mixdistill.training.history import LEDGER
from mixdistill.training.hooks import METRICS_FILE


def checkpoints(workdir: Path, *, repair: bool) -> Iterator[tuple[int, str]]:
    """(train step, what is wrong, "" for nothing) of every checkpoint; `repair` sets damaged ones aside."""
    if not (workdir / FOLDER).is_dir():
        return
    with Checkpoints(workdir, keep=None) as found:
        for train_step in found.all():
            problem = ""
            try:
                found.verify(train_step)
            except Damaged as damage:
                problem = str(damage)
            if problem and repair:
                found.set_aside(train_step)
            yield train_step, problem


def files(workdir: Path, *, repair: bool) -> Iterator[tuple[str, str]]:
    """(name, what is wrong) of files and folders that a killed process or a damaged disk left behind."""
    for path in sorted((workdir / FOLDER).glob("*.orbax-checkpoint-tmp*")):
        if repair:
            shutil.rmtree(path)
        yield f"{FOLDER}/{path.name}", "a checkpoint that was never finished"
    for name in (METRICS_FILE, LEDGER):
        lines = (workdir / name).read_bytes().splitlines(keepends=True) if (workdir / name).exists() else []
        good = [line for line in lines if _whole(line)]
        if len(good) < len(lines):
            if repair:
                temporary = (workdir / name).with_suffix(".tmp")
                temporary.write_bytes(b"".join(good))
                temporary.replace(workdir / name)
            yield name, f"{len(lines) - len(good)} lines that are no lines"
    yield from _gaps(workdir)


def whole(workdir: Path) -> list[int]:
    """Train steps of the checkpoints there are."""
    return saved_train_steps(workdir)


def _gaps(workdir: Path) -> Iterator[tuple[str, str]]:
    """Train steps that the ledger lacks or has twice, up to its end."""
    from mixdistill.training.history import read_ledger

    steps = [line["train_step"] for line in read_ledger(workdir / LEDGER) if "event" not in line]
    if steps and (missing := sorted(set(range(1, max(steps) + 1)) - set(steps))):
        yield LEDGER, f"{len(missing)} train steps are missing, the first is {missing[0]}"
    if len(set(steps)) < len(steps):
        yield LEDGER, f"{len(steps) - len(set(steps))} train steps are there twice"


def _whole(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except ValueError:
        return False
