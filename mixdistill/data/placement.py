"""Placement: the rows that every process has read become one global array a field."""

from collections.abc import Mapping

import jax
from jax.sharding import Mesh, NamedSharding

from mixdistill.data.fields import Batch
from mixdistill.errors import UserError
from mixdistill.mesh import Rules, sharding


def place(batch: Batch, mesh: Mesh, rules: Rules) -> dict[str, jax.Array]:
    """Global arrays `[rows, ...]`, split over the mesh axes of "batch", from this process's rows of each field."""
    return jax.make_array_from_process_local_data(sharding(mesh, rules, ("batch",)), batch)


def share(mesh: Mesh, rules: Rules, rows: int) -> tuple[int, int]:
    """(index, count): this process reads part `index` of `count` equal parts of a batch of `rows`.

    Processes whose devices hold the same rows (a mesh axis that splits no rows runs across them) read the same part.
    Raises `UserError` if processes overlap in part.
    """
    return part_of(rows_held(sharding(mesh, rules, ("batch",)), rows), rows, jax.process_index())


def rows_held(split: NamedSharding, rows: int) -> dict[int, tuple[int, ...]]:
    """{process: the rows that its devices hold}."""
    held: dict[int, set[int]] = {}
    for device, (span,) in split.devices_indices_map((rows,)).items():
        held.setdefault(device.process_index, set()).update(range(*span.indices(rows)))
    return {process: tuple(sorted(found)) for process, found in held.items()}


def part_of(held: Mapping[int, tuple[int, ...]], rows: int, process: int) -> tuple[int, int]:
    """`share` of a process from what all of them hold."""
    parts = sorted(set(held.values()))
    if sum(map(len, parts)) != rows or len({len(part) for part in parts}) > 1:
        raise UserError(
            "some processes hold rows that overlap in part; order the axes of the mesh so that the devices of a "
            "process are neighbours"
        )
    return parts.index(held[process]), len(parts)
