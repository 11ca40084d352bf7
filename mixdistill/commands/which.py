"""`mixdistill which WORKDIR`: the traces of a train step, the train steps of a trace, and what the guard decided."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mixdistill.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("workdir", type=Path, help="of `mixdistill train`")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--step", type=int, metavar="N", help="the traces of this train step")
    asked.add_argument("--trace", type=int, metavar="ID", help="the train steps that this trace was in")
    asked.add_argument("--decisions", action="store_true", help="strikes, quarantine, rollbacks, alarms")
    parser.add_argument("--json", action="store_true", help="as JSON lines")


def run(args: argparse.Namespace) -> int:
    """0 when something was found, 1 when nothing was."""
    from mixdistill.training.history import LEDGER, read_ledger

    path = args.workdir / LEDGER
    if not path.is_file():
        raise UserError(f"no ledger at {path}; give the --workdir of `mixdistill train`")
    lines = list(read_ledger(path))
    if args.decisions:
        return _print(_decisions(lines), args.json)
    found = _of_step(lines, args.step) if args.step is not None else _of_trace(lines, args.trace)
    if args.step is not None and not found:
        seen = [line["train_step"] for line in lines if "traces" in line and "event" not in line]
        known = f"it has {seen[0]} to {seen[-1]}" if seen else "it has none"
        print(f"train_step {args.step} is not in the ledger; {known}", file=sys.stderr)
    return _print(_with_teachers(args.workdir, found), args.json)


def _undone(lines: list[dict[str, Any]]) -> Iterator[tuple[int, int, int]]:
    """(first, last, at): train steps that a rollback undid, and when."""
    for line in lines:
        if line.get("event") == "rollback":
            yield line["to"] + 1, line["train_step"], line["train_step"]


def _batches(lines: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every train step, and what became of it: learned, skipped, or undone."""
    undone = list(_undone(lines))
    for line in lines:
        if "event" in line:
            continue
        at = next((at for first, last, at in undone if first <= line["train_step"] <= last), None)
        fate = "skipped" if line["skipped"] else "learned" if at is None else f"undone by the rollback at {at}"
        yield {"train_step": line["train_step"], "stage": line["stage"], "became": fate, "traces": line["traces"]}


def _of_step(lines: list[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    return [batch for batch in _batches(lines) if batch["train_step"] == step]


def _of_trace(lines: list[dict[str, Any]], trace: int) -> list[dict[str, Any]]:
    return [{**batch, "traces": [trace]} for batch in _batches(lines) if trace in batch["traces"]]


def _decisions(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if "event" in line]


def _with_teachers(workdir: Path, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With problem and teacher of each trace, where the shards of the stage are still in their place."""
    cache: dict[str, Any] = {}
    return [{**one, "traces": _described(workdir, one, cache)} for one in found]


def _described(workdir: Path, one: dict[str, Any], cache: dict[str, Any]) -> list[dict[str, Any]]:
    if one["stage"] not in cache:
        cache[one["stage"]] = _shards(workdir, one["stage"])
    shards, described = cache[one["stage"]], []
    for trace in one["traces"]:
        about: dict[str, Any] = {"trace": trace}
        start = 0
        for folder in shards:
            if start <= trace < start + len(folder):
                index = folder.index
                about["teacher"] = folder.teachers[int(index["teacher_id"][trace - start])]
                about["problem"] = folder.problems[int(index["problem"][trace - start])]
            start += len(folder)
        described.append(about)
    return described


def _shards(workdir: Path, stage: str) -> list[Any]:
    """The shards of a stage by the run's recipe; none where they have gone."""
    from mixdistill.recipe.read import read_value, settings
    from mixdistill.traces.shards import Shards
    from mixdistill.training.workdir import RECIPE

    text = (workdir / RECIPE).read_text(encoding="utf-8")
    paths = [path for path, value in settings(text).items() if value == repr(stage) and path.endswith(".name")]
    folders = read_value(text, f"{paths[0].removesuffix('.name')}.source.shards") if paths else None
    try:
        return [Shards.open(folder, "none") for folder in ([folders] if isinstance(folders, str) else folders or ())]
    except UserError:
        return []


def _print(found: list[dict[str, Any]], as_json: bool) -> int:
    for one in found:
        print(json.dumps(one) if as_json else _line(one))
    if not found and not as_json:
        print("nothing found")
    return 0 if found else 1


def _line(one: dict[str, Any]) -> str:
    if "event" in one:
        from mixdistill.training.history import words

        return f"train_step {one['train_step']}: {words(one)}"
    head = f"train_step {one['train_step']}  {one['stage']}  {one['became']}  {len(one['traces'])} traces"
    rows = [f"  {trace['trace']}  {trace.get('teacher', '?')}  {trace.get('problem', '?')}" for trace in one["traces"]]
    return "\n".join([head, *rows])
