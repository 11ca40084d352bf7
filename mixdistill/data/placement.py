"""Placement: the rows that every process has read become one global array a field."""

import jax
from jax.sharding import Mesh, NamedSharding

from mixdistill.data.fields import Batch
from mixdistill.errors import UserError
from mixdistill.mesh import Rules, sharding


def place(batch: Batch, mesh: Mesh, rules: Rules) -> dict[str, jax.Array]:
    """Global arrays `[rows, ...]`, split over the mesh axes of "batch", from this process's rows of each field."""
    return jax.make_array_from_process_local_data(sharding(mesh, rules, ("batch",)), batch)


def share(mesh: Mesh, rules: Rules, rows: int, process: int | None = None) -> tuple[int, int]:
    """(index, count): this process (or `process`) reads part `index` of `count` equal parts of a batch of `rows`.

    Processes whose devices hold the same rows (a mesh axis that splits no rows runs across them) share an index. Raises
    `UserError` if processes overlap in part.
    """
    held = rows_held(sharding(mesh, rules, ("batch",)), rows)
    parts = sorted(set(held.values()))
    if sum(map(len, parts)) != rows or len({len(part) for part in parts}) > 1:
        raise UserError(
            f"the mesh {dict(mesh.shape)} gives some processes rows that overlap in part; order its axes so that the "
            "devices of a process are neighbours"
        )
    return parts.index(held[jax.process_index() if process is None else process]), len(parts)


def rows_held(split: NamedSharding, rows: int) -> dict[int, tuple[int, ...]]:
    """{process: the rows that its devices hold}."""
    held: dict[int, set[int]] = {}
    for device, (span,) in split.devices_indices_map((rows,)).items():
        held.setdefault(device.process_index, set()).update(range(*span.indices(rows)))
    return {process: tuple(sorted(found)) for process, found in held.items()}
