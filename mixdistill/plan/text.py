"""A plan in words, for a terminal."""

from collections.abc import Iterator, Sequence
from typing import Any

GIB = 2**30


def lines(plan: dict[str, Any], price: float | None) -> Iterator[str]:
    """Of one stage; `price` is of a chip for an hour."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items()) or "one device"
    yield f"stage {plan['stage']} on {plan['topology']}: {plan['chips']} chips, {mesh}"
    rows = f"{plan['rows']} rows x {plan['length']} = {plan['tokens']:,} tokens a train step"
    yield f"  {plan['parameters']:,} parameters; {rows}, in {plan['num_microbatches']} parts; remat {plan['remat']}"
    yield from _memory(plan)
    yield from _collectives(plan)
    head = plan["vocabulary_pass"]
    yield (
        f"  vocabulary pass: {head['vocabulary']:,} words ({_padding(head)}), {head['columns']:,} a device, backward "
        f"{head['backward']}, tiles {', '.join(f'{k} {v}' for k, v in head['tiles'].items() if v)}"
    )
    useful, done = plan["flops_per_token"]["useful"], plan["flops_per_token"]["done"]
    yield f"  arithmetic: {useful / 1e9:,.2f} GFLOP a token, {done / useful:.2f} times that with what is computed again"
    yield from _time(plan, price)
    host = plan["host"]
    rate = "" if host["bytes_per_second"] is None else f", {host['bytes_per_second'] / 1e6:,.2f} MB/s of batches"
    yield f"  each of {host['hosts']} hosts: {host['memory_bytes'] / GIB:,.1f} GiB for batches and checkpoints{rate}"


def _padding(head: dict[str, Any]) -> str:
    more = head["padded_to_128"] - head["vocabulary"]
    return f"{more} short of a multiple of 128" if more else "a multiple of 128"


def _memory(plan: dict[str, Any]) -> Iterator[str]:
    needed, capacity = plan["needed"], plan["capacity"]
    size, unit = _unit(needed or capacity or GIB)
    named = {name.replace("_", " "): part / size for name, part in plan["memory"].items()}
    yield f"  memory of a device, {unit}: " + ", ".join(f"{name} {part:.2f}" for name, part in named.items())
    if needed is None:
        yield f"  DOES NOT FIT: {plan['compiler']['message']}"
    elif capacity is None:
        yield f"  needs {needed / size:.2f} {unit}; nothing is known of the memory of {plan['topology']}"
    else:
        verdict = "fits" if plan["fits"] else "DOES NOT FIT"
        rest = f"{abs(capacity - needed) / size:.2f} {'left' if plan['fits'] else 'too much'}"
        yield f"  {verdict}: {needed / size:.2f} of {capacity / size:.2f} {unit}, {rest}"


def _unit(size: int) -> tuple[int, str]:
    """In which a number of bytes is easy to read."""
    units = [(GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB")]
    return next((unit for unit in units if size >= unit[0] / 2), units[-1])


def _collectives(plan: dict[str, Any]) -> Iterator[str]:
    found = [f"{kind} {t['count']} times, {t['sent'] / 2**20:,.1f} MiB sent" for kind, t in plan["collectives"].items()]
    yield f"  collectives of a device in a train step: {'; '.join(found) or 'none'}"


def _time(plan: dict[str, Any], price: float | None) -> Iterator[str]:
    roof = plan["roofline"]
    if roof is None:
        yield f"  time: nothing is known of the speed of {plan['topology']}"
        return
    parts = ", ".join(f"{name} {_short(roof[name] * 1e3)}" for name in ("arithmetic", "memory", "links", "network"))
    yield f"  at best {_short(roof['seconds'] * 1e3)} ms a train step, limited by {roof['limit']} (ms: {parts})"
    speed = f"{roof['tokens_per_second']:,.0f} tokens/s"
    yield f"  at most {roof['mfu']:.0%} MFU and {speed}; {roof['intensity']:,.0f} FLOP a byte of memory"
    hours = plan["tokens_budget"] / roof["tokens_per_second"] / 3600
    cost = "" if price is None else f", {hours * plan['chips'] * price:,.2f} at {price:g} a chip-hour"
    spent = f"{_short(hours * plan['chips'])} chip-hours{cost}"
    yield f"  {plan['tokens_budget']:,} tokens: at least {_short(hours)} hours, {spent}"


def _short(value: float) -> str:
    """Three digits of what is small, one decimal of what is large."""
    return f"{value:,.1f}" if value >= 100 or value == 0 else f"{value:.3g}"


def suggestions(suggestions: Sequence[dict[str, Any]], refused: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Of `--suggest`: what fits, ranked, and what does not."""
    yield f"what fits of {len(suggestions) + len(refused)} that were compiled, fastest first:"
    for plan in suggestions:
        size, unit = _unit(plan["needed"])
        speed = "" if plan["roofline"] is None else f", at best {_short(plan['roofline']['seconds'] * 1e3)} ms"
        yield f"  {_changed(plan)}: {plan['needed'] / size:.2f} {unit}{speed}"
    if not suggestions:
        yield "  nothing"
    for plan in refused:
        yield f"does not fit: {_changed(plan)}: {_why(plan)}"


def _changed(plan: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in plan["changes"].items())


def _why(plan: dict[str, Any]) -> str:
    if "error" in plan:
        return plan["error"]
    if plan["needed"] is None:
        return plan["compiler"]["message"]
    size, unit = _unit(plan["needed"])
    return f"{(plan['needed'] - plan['capacity']) / size:.2f} {unit} too much"
