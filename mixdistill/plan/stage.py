"""One stage on one topology: everything that is said of it, as plain data."""

import json
import math
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mixdistill.mesh import Rules
from mixdistill.plan import aot
from mixdistill.plan.collectives import Traffic, collectives
from mixdistill.plan.flops import Flops, flops_per_token
from mixdistill.plan.memory import by_class, share
from mixdistill.plan.roofline import Work, bound
from mixdistill.plan.topology import Topology
from mixdistill.recipe import Recipe
from mixdistill.signals.vocabulary_choice import choose_backward, default_tiles
from mixdistill.students.config import DecoderConfig
from mixdistill.students.flops import matrices
from mixdistill.training.steer import READ_AHEAD

VERSION = 2  # of what is kept: another one is not read


def plan_stage(recipe: Recipe, stage: int, topology: Topology, *, fast: bool, memory: int | None) -> dict[str, Any]:
    """`memory`: bytes that a device has, in place of the chip's. Raises `UserError` for what cannot be built."""
    lowered = aot.lower(recipe, stage, topology)
    compiled = _compile(lowered, topology, fast)
    source, student = recipe.stages[stage].source, recipe.build_student()
    head = _vocabulary(recipe, stage, topology, lowered.mesh.shape, student.vocab_size)
    per_token = flops_per_token(recipe.build_base(), source.length, head["backward"])
    gradients = share(_trained(lowered.state.params, recipe)) * (2 if recipe.num_microbatches > 1 else 1)
    classes = by_class(lowered.state, lowered.batch, gradients, head["bytes"], compiled["temporary"])
    capacity = memory or topology.chip.memory
    needed = classes.total if compiled["temporary"] is not None else compiled["needed"]
    traffic = {kind: Traffic(*numbers) for kind, numbers in compiled["collectives"].items()}
    tokens = source.rows * source.length
    limit = bound(_work(recipe, topology, lowered, per_token, traffic, tokens), topology)
    return {
        "stage": recipe.stages[stage].name,
        "topology": topology.name,
        "chips": topology.chips,
        "mesh": {axis: size for axis, size in lowered.mesh.shape.items() if size > 1},
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(lowered.state.params)),
        "rows": source.rows,
        "length": source.length,
        "num_microbatches": recipe.num_microbatches,
        "remat": getattr(recipe.student, "remat", None),
        "memory": classes._asdict(),
        "needed": needed,
        "capacity": capacity,
        "fits": _fits(compiled, needed, capacity),
        "compiler": {
            "seconds": round(compiled["seconds"], 1),
            "message": compiled["message"],
            "digest": lowered.digest,
        },
        "cached": compiled["cached"],
        "collectives": {kind: t._asdict() for kind, t in traffic.items()},
        "flops_per_token": per_token._asdict(),
        "vocabulary_pass": head,
        "roofline": None if limit is None else {**limit._asdict(), "seconds": limit.seconds, "limit": limit.limit},
        "tokens": tokens,
        "host": _host(lowered, topology, limit.seconds if limit else None),
        "tokens_budget": _budget(recipe, stage),
    }


def _fits(compiled: dict[str, Any], needed: int | None, capacity: int | None) -> bool:
    if compiled["temporary"] is None:
        return False
    return capacity is None or needed is None or needed <= capacity


def _compile(lowered: aot.Lowered, topology: Topology, fast: bool) -> dict[str, Any]:
    """From what was kept of an equal program, or anew."""
    key = f"{lowered.digest[:32]}-{topology.name}-{'fast' if fast else 'full'}-{jax.__version__}-{VERSION}"
    kept = _folder() / f"{key}.json"
    if kept.is_file():
        return json.loads(kept.read_text()) | {"cached": True}
    found = aot.compile_for(lowered, topology, fast=fast)
    said = {name: value for name, value in found._asdict().items() if name != "text"}
    said["collectives"] = collectives(found.text, topology.chips)
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(said))
    temporary.replace(kept)
    return said | {"cached": False}


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mixdistill" / "plan"


def _trained(params: Any, recipe: Recipe) -> Any:
    return params["adapters"] if recipe.adapters else params


def _parts(mesh: Any, rules: Rules, *names: str) -> int:
    return math.prod(mesh[axis] for name in names for axis in rules.mesh_axes(name))


def _vocabulary(recipe: Recipe, stage: int, topology: Topology, mesh: Any, vocab: int) -> dict[str, Any]:
    """How the vocabulary pass goes, and what it holds at once: a tile of logits and of the unembedding's gradient."""
    source, rules, platform = recipe.stages[stage].source, recipe.rules, topology.chip.platform
    tokens = source.rows * source.length // recipe.num_microbatches // _parts(mesh, rules, "batch", "sequence")
    columns = vocab // _parts(mesh, rules, "vocab")
    backward, why = choose_backward(platform, tokens, columns)
    tiles = default_tiles(platform, tokens, columns)
    rows = min(tokens, tiles.forward_tokens)
    wide = min(columns, tiles.forward_vocab or columns)
    held = 4 * tokens * columns if backward == "dense" else 4 * rows * wide
    return {
        "vocabulary": vocab,
        "columns": columns,
        "tokens": tokens,
        "backward": backward,
        "why": why,
        "tiles": tiles._asdict(),
        "bytes": held,
        "padded_to_128": -(-vocab // 128) * 128,
    }


def _work(
    recipe: Recipe, topology: Topology, lowered: aot.Lowered, flops: Flops, traffic: dict[str, Traffic], tokens: int
) -> Work:
    """Weights stream through a device in every pass; state is read and written once."""
    student, mesh = recipe.student, lowered.mesh.shape
    passes = 3 if getattr(student, "remat", "none") == "full" else 2
    width = 2 if getattr(student, "dtype", "float32") == "bfloat16" else 4
    weights = matrices(student) / 2 * width if isinstance(student, DecoderConfig) else 0.0
    weights /= _parts(mesh, recipe.rules, "mlp")
    state = share((lowered.state.params, lowered.state.opt_state))
    slices = topology.slices
    sent = sum(t.sent for t in traffic.values())
    network = 0.0
    if slices > 1:  # what a device's share of the gradients takes in a ring of slices
        network = 2 * (slices - 1) / slices * share(_trained(lowered.state.params, recipe))
    elif topology.chip.platform == "gpu" and topology.hosts > 1:
        network = sent * (topology.hosts - 1) / topology.hosts / topology.chip.per_host
    return Work(
        flops.useful * tokens,
        flops.done * tokens,
        passes * weights * recipe.num_microbatches + 2 * state,
        max(0.0, sent - network),
        network,
        tokens,
    )


def _host(lowered: aot.Lowered, topology: Topology, seconds: float | None) -> dict[str, Any]:
    """What a host reads and holds: batches ahead of time, and the state while a checkpoint is written."""
    batch = sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in lowered.batch.values()) // topology.hosts
    state = share(lowered.state) * min(topology.chips, topology.chip.per_host)
    return {
        "hosts": topology.hosts,
        "batch_bytes": batch,
        "memory_bytes": batch * (READ_AHEAD + 2) + state,
        "bytes_per_second": None if seconds is None else batch / seconds,
    }


def _budget(recipe: Recipe, stage: int) -> int:
    """Tokens in rows of the stage, padding and prompts included, for which it is budgeted."""
    found, source = recipe.stages[stage].budget, recipe.stages[stage].source
    return found.size if found.unit == "tokens" else found.size * source.rows * source.length
