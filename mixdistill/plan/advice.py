"""What would make a recipe fit, from the classes of its memory; `--suggest` compiles to be sure."""

import itertools
import math
from collections.abc import Iterator
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
    """Changes to try, cheapest for speed first."""
    presets = [name for name in PRESETS if name != "multislice"]
    remats = ["none", "dots", "full"] if has_config else [None]
    parts = [n for n in (1, 2, 4, 8) if plan["rows"] % n == 0]
    for name, remat, number in itertools.product(presets, remats, parts):
        yield {"preset": name, "num_microbatches": number, **({"remat": remat} if remat else {})}


def rank(plans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What fits, fastest first; then by what is left."""
    fitting = [plan for plan in plans if plan["fits"]]
    return sorted(fitting, key=lambda p: (p["roofline"]["seconds"] if p["roofline"] else 0.0, p["needed"]))
