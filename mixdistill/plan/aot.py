"""A stage's train step, compiled for machines that are not here."""

import contextlib
import dataclasses
import functools
import hashlib
import re
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from mixdistill.data.fields import FIELDS, TOP_K_FIELDS
from mixdistill.errors import UserError
from mixdistill.mesh import make_mesh, sharding
from mixdistill.objective import Objective
from mixdistill.optimizers import make_optimizer
from mixdistill.plan.topology import Topology
from mixdistill.recipe import Recipe
from mixdistill.recipe.parameters import Merge
from mixdistill.students.config import DecoderConfig
from mixdistill.training import average, branches
from mixdistill.training.state import TrainState, abstract_state, initial_memory
from mixdistill.training.step import compile_train_step, make_train_step

TOP_K = 20  # of teachers, where an objective reads them
# What the plugin asks a driver for where there is one. Performance of kernels is not judged from it.
H200 = """gpu_device_info { threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 4800000000000
l2_cache_size: 62914560 clock_rate_ghz: 1.98 device_memory_size: 150754820096 shared_memory_per_block_optin: 232448
cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
registers_per_core_limit: 65536 registers_per_block_limit: 65536 }
platform_name: "CUDA" dnn_version_info { major: 9 minor: 12 } runtime_version { major: 13 minor: 0 }
device_description_str: "NVIDIA H200"
"""
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_USED = re.compile(r"[Uu]sed ([\d.]+)([KMGT]?)i?B? of ([\d.]+)([KMGT]?)")
_EXCEEDS = re.compile(r"\(([\d.]+)([KMGT]?)i?B?\) exceeds available HBM \(([\d.]+)([KMGT]?)")


class Lowered(NamedTuple):
    """A train step that is traced, not compiled."""

    program: Any
    state: TrainState  # abstract
    batch: dict[str, jax.ShapeDtypeStruct]
    mesh: Mesh

    @property
    def digest(self) -> str:
        """sha256 of the StableHLO, which holds shapes and shardings."""
        return hashlib.sha256(self.program.as_text().encode()).hexdigest()


class Compiled(NamedTuple):
    """What the compiler said. `temporary` in bytes of a device; None where the program did not fit."""

    text: str
    temporary: int | None
    needed: int | None  # bytes of a device, by the compiler's message, where it did not fit
    message: str
    seconds: float


def devices_of(topology: Topology) -> list[Any]:
    """Devices that can be compiled for. Raises `UserError` where a plugin is missing."""
    platform = topology.chip.platform
    if platform == "cpu":
        return jax.devices("cpu")[: topology.chips]
    try:
        if platform == "tpu":
            slices = {"num_slices": topology.slices} if topology.slices > 1 else {}
            found = topologies.get_topology_desc(f"{topology.kind}:{topology.shape}", "tpu", **slices)
        else:
            found = topologies.get_topology_desc("h200", "cuda", target_config=H200, topology=topology.shape)
    except Exception as error:  # noqa: BLE001 - plugins raise what they like
        extra = "tpu" if platform == "tpu" else "cuda"
        raise UserError(
            f"cannot compile for {topology.name}: {str(error).splitlines()[0][:200]}; install the {extra} extra "
            f"(pip install 'mixdistill[{extra}]'), no such device is needed"
        ) from None
    return list(found.devices)


def lower(recipe: Recipe, stage: int, topology: Topology) -> Lowered:
    """Raises `UserError` for a mesh that does not fit the topology, and all that building a run would raise."""
    mesh = make_mesh(recipe.mesh, devices_of(topology))
    student, rules = recipe.build_student(), recipe.rules
    teachers = teachers_of(recipe)
    objectives = [recipe.objective_of(index).with_teachers(teachers) for index in range(len(recipe.stages))]
    optimizer = make_optimizer(recipe.trained, student.axes, recipe.budget)
    step = make_train_step(
        student,
        objectives[stage],
        optimizer,
        num_microbatches=recipe.num_microbatches,
        frozen=recipe.trained.frozen,
        mesh=mesh,
        rules=rules,
        options={"platform": topology.chip.platform},
        teacher_gradients=recipe.stages[stage].teacher_gradients,
    )
    memory = initial_memory(objectives)
    if kept := [index for index, one in enumerate(recipe.stages) if one.branches]:
        memory[branches.MEMORY] = functools.partial(branches.initial, branch_rule(recipe, kept[0]))
    if recipe.stages[stage].branches:
        shape = {"turns": recipe.stages[stage].source.turns, "count": len(teachers_of(recipe))}
        examined = recipe.stages[stage].verifier is not None
        step = branches.in_branches(step, optimizer, branch_rule(recipe, stage), **shape, examined=examined)
    if recipe.average:
        memory[average.MEMORY], step = average.initial, average.averaging(step, recipe.average)
    state = abstract_state(student, optimizer, memory, mesh, rules)
    batch = abstract_batch(recipe, stage, objectives[stage], mesh)
    program = compile_train_step(step, mesh, rules, student).lower(state, batch)
    return Lowered(program, state, batch, mesh)


def teachers_of(recipe: Recipe) -> tuple[str, ...]:
    """Those that the recipe names: shards need not exist yet, and how many teachers there are changes a few numbers a
    train step."""
    names: dict[str, None] = {}
    for index, stage in enumerate(recipe.stages):
        source = stage.source
        fallback, anchor = recipe.objective_of(index).fallback, getattr(source, "anchor", None)
        names |= dict.fromkeys([*(getattr(source, "teachers", None) or ()), *(getattr(source, "weights", None) or ())])
        names |= dict.fromkeys(name for name in (fallback, anchor) if name)
    return tuple(names) or ("teacher",)


def branch_rule(recipe: Recipe, stage: int) -> branches.Rule:
    """That of a stage with branches, for the teachers that the recipe names."""
    made, source, names = recipe.stages[stage].branches, recipe.stages[stage].source, teachers_of(recipe)
    if isinstance(made, Merge):
        merging, everyone = branches.merging(np.full(len(names), 1 / len(names)), made.scale), tuple(range(len(names)))
        return branches.keeping_adapters(merging, everyone, len(names)) if recipe.adapters else merging
    assert made is not None
    pilots = tuple(k for k, name in enumerate(names) if name != source.anchor) or (0,)
    slack = None if recipe.stages[stage].verifier is None else made.slack
    return branches.piloting(pilots, len(names), source.turns, made.limit, slack)


def abstract_batch(recipe: Recipe, stage: int, objective: Objective, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Every field that the stage's batches have, where placement puts them."""
    source = recipe.stages[stage].source
    size = {"B": source.rows, "T": source.length, "K": TOP_K}
    where = sharding(mesh, recipe.rules, ("batch",))
    wanted = FIELDS | ({} if not set(TOP_K_FIELDS) & set(objective.batch_names) else TOP_K_FIELDS)
    kinds = {name: (tuple(size[axis] for axis in field.shape), field.dtype) for name, field in wanted.items()}
    kinds |= {name: ((source.rows, source.length), jnp.float32) for name in objective.fields}
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=where) for name, (shape, dtype) in kinds.items()}


def compile_for(lowered: Lowered, topology: Topology, *, fast: bool) -> Compiled:
    """`fast` compiles with fewer optimisations: memory within a few per cent, collectives less well combined."""
    options = {"optimization_level": "O1"} if fast and topology.chip.platform == "tpu" else None
    began = time.perf_counter()
    try:
        compiled = lowered.program.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if "RESOURCE_EXHAUSTED" not in message:
            raise
        return Compiled("", None, _needed(message), message.splitlines()[0][:500], time.perf_counter() - began)
    memory = compiled.memory_analysis()
    temporary = max(memory.temp_size_in_bytes, 0) + max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes)
    return Compiled(compiled.as_text(), temporary, None, "", time.perf_counter() - began)


def _needed(message: str) -> int | None:
    """Bytes that the program would have used."""
    found = _USED.search(message) or _EXCEEDS.search(message)
    return int(float(found[1]) * _UNITS[found[2]]) if found else None


def vary(recipe: Recipe, **changes: Any) -> Recipe:
    """A copy with another mesh, rules, number of microbatches or remat policy."""
    remat = changes.pop("remat", None)
    if remat is not None:
        if not isinstance(recipe.student, DecoderConfig):
            raise UserError("the student is made by a function; remat is a choice of a DecoderConfig")
        changes["student"] = dataclasses.replace(recipe.student, remat=remat)
    with contextlib.suppress(KeyError):
        layout = changes.pop("layout")
        changes |= {"mesh": layout.mesh, "rules": layout.rules}
    return dataclasses.replace(recipe, **changes)
