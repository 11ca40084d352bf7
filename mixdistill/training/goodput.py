"""How well a run uses its time and its machine. All of it is read from the lines of metrics.jsonl.

Goodput: the share of a run's time, crashes and waiting in queues included, that went into train steps that count. MFU:
the student's FLOPs (`students/flops.py`: neither padding nor what is computed again) over what the devices could have
done in the time of the train steps, by their makers' peak for dense bfloat16.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mixdistill.objective import Tally

TRAINING = ("data", "dispatch", "device")  # parts of `Spent` that are train steps
SPEED, MFU = "tokens_per_second", "mfu"  # tallies


def measured(tallies: Mapping[str, Tally], spent: Mapping[str, float], peak: float | None) -> dict[str, Tally]:
    """Two more tallies of train steps, from theirs and from the seconds `spent` on them: targets a second, and MFU.

    `peak` is of all devices, in FLOP/s. MFU has no weight, so its mean is None, where the peak is not known, and for
    rollouts, whose FLOPs nobody counts.
    """
    seconds = sum(spent.get(part, 0.0) for part in TRAINING)
    tokens = float(np.sum(tallies["teacher/tokens"].sum)) if "teacher/tokens" in tallies else 0.0
    flops = float(tallies["flops"].sum) if peak and "flops" in tallies else 0.0
    possible = seconds * peak if peak and "flops" in tallies else 0.0
    pairs = {SPEED: (tokens, seconds), MFU: (flops, possible)}
    return {name: Tally(*map(np.float64, pair)) for name, pair in pairs.items()}  # pyright: ignore[reportArgumentType]


def mean(lines: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Of a metric over all lines; None where it was never measured."""
    pairs = [(line["metrics"].get(name), line["weights"].get(name)) for line in lines if "metrics" in line]
    known = [(value, weight) for value, weight in pairs if value is not None and weight]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None


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
    return f"goodput {share:.0%} ({', '.join(f'{part} {value:.0%}' for value, part in shares)}){_speed(lines)}"


def _speed(lines: Sequence[Mapping[str, Any]]) -> str:
    rate, used = mean(lines, SPEED), mean(lines, MFU)
    if rate is None:
        return ""
    known = f"MFU {used:.1%}" if used is not None else "MFU not known (no peak of this device, or rollouts alone)"
    return f"; in train steps {rate:,.0f} tokens/s, {known}"
