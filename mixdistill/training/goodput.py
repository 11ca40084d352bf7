"""Goodput: the share of a run's time, crashes and waiting in queues included, that went into train steps that count."""

from collections.abc import Mapping, Sequence
from typing import Any

TRAINING = ("data", "dispatch", "device")  # parts of `Spent` that are train steps


def parts(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds by part over the lines of a metrics.jsonl, of train steps that were not lost; and `wall`, all seconds
    from the first start to the last line, of processes that died and of the time between them, too."""
    found: dict[str, float] = {}
    for line in lines:
        for part, seconds in line.get("spent", {}).items():
            found[part] = found.get(part, 0.0) + seconds
    if clocks := [(line["clock"], line["seconds"]) for line in lines if "clock" in line]:
        found["wall"] = clocks[-1][0] - (clocks[0][0] - clocks[0][1])
    return found


def goodput(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """Between 0 and 1; None where nothing was measured."""
    spent = parts(lines)
    wall = spent.get("wall", 0.0)
    return min(sum(spent.get(part, 0.0) for part in TRAINING) / wall, 1.0) if wall > 0 else None


def sentence(lines: Sequence[Mapping[str, Any]]) -> str:
    """In words, for the end of a run; empty where nothing was measured."""
    share = goodput(lines)
    if share is None:
        return ""
    spent = parts(lines)
    wall = spent.pop("wall")
    shares = sorted(((seconds / wall, part) for part, seconds in spent.items()), reverse=True)
    return f"goodput {share:.0%} ({', '.join(f'{part} {value:.0%}' for value, part in shares)})"
