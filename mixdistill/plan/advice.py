"""What would make a recipe fit, from the classes of its memory; `--suggest` compiles to be sure."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from mixdistill.mesh import PRESETS

GIB = 2**30


def advice(plan: dict[str, Any]) -> list[str]:
    """Of a plan that does not fit; estimates."""
    memory, capacity, needed = plan["memory"], plan["capacity"], plan["needed"]
    if plan["fits"] or capacity is None:
        return []
    state = sum(memory[name] for name in ("params", "optimizer", "other_state", "gradients"))
    if state > 0.9 * capacity:
        times = math.ceil(state / (0.8 * capacity))
        split = "fsdp" if plan["mesh"].get("data", 1) > 1 else None
        alone = f"weights, moments and gradients alone need {state / GIB:.1f} GiB a device"
        more = [f"{alone}: take {times} times the chips"]
        more += ["or split them over the devices that hold copies (preset fsdp)"] if split else []
        return [*more, "or train adapters (adapters=Lora()), or optimizer moments='factored'"]
    room = capacity - state - memory["batch"]
    moving = (needed or 2 * capacity) - state - memory["batch"]
    found = []
    per_device = plan["rows"] // max(1, plan["chips"] // plan["mesh"].get("tensor", 1))
    parts = plan["num_microbatches"]
    while parts < per_device and moving * plan["num_microbatches"] / parts > room:
        parts *= 2
    if parts > plan["num_microbatches"]:
        whole = state + memory["batch"] + moving * plan["num_microbatches"] / parts
        found.append(f"num_microbatches={parts} would need about {whole / GIB:.1f} GiB")
    if plan["remat"] not in ("full", None):
        found.append("remat='full' keeps one activation a layer")
    return found or ["more chips, or shorter rows"]


def variants(plan: dict[str, Any], has_config: bool) -> Iterator[dict[str, Any]]:
    """Changes to try. What needs least memory comes first at each number of microbatches, so that what did not fit
    rules out what needs more (`settled`)."""
    presets = [name for name in PRESETS if name != "multislice"]
    remats = ["full", "none", "dots"] if has_config else [None]
    parts = [n for n in (1, 2, 4, 8, 16, 32) if plan["rows"] % n == 0]
    for number, name, remat in itertools.product(parts, presets, remats):
        yield {"preset": name, "num_microbatches": number, **({"remat": remat} if remat else {})}


def settled(changes: dict[str, Any], found: Sequence[dict[str, Any]]) -> bool:
    """Whether the outcome follows from variants that were compiled: one that computes no more again and has no more
    microbatches fits, so this one is no faster; or one that computes as much again in as many does not fit. A layout
    that was refused is refused again."""
    for plan in found:
        other = plan["changes"]
        if other["preset"] != changes["preset"]:
            continue
        more = _again(changes) >= _again(other) and changes["num_microbatches"] >= other["num_microbatches"]
        less = _again(changes) <= _again(other) and changes["num_microbatches"] <= other["num_microbatches"]
        if (plan["fits"] and more) or (not plan["fits"] and less) or "error" in plan:
            return True
    return False


def _again(changes: dict[str, Any]) -> int:
    """How much a remat policy computes again."""
    return ("none", "dots", "full").index(changes.get("remat", "none"))


def rank(plans: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What fits, fastest first; then by what is left."""
    fitting = [plan for plan in plans if plan["fits"]]
    return sorted(fitting, key=lambda p: (p["roofline"]["seconds"] if p["roofline"] else 0.0, p["needed"]))
