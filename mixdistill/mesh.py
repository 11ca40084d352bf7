"""Meshes, and the rules that lay logical axes over them: the only place where a mesh axis is named.

A parameter or a batch names its axes by what they mean ("embed", "batch"); `Rules` say over which mesh axes each
of them is split. Another machine takes another mesh or other rules, never another model.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mixdistill.errors import UserError, unknown

MESH_AXES = ("data", "fsdp", "context", "tensor")
LogicalAxes = tuple[str | None, ...]
MeshAxes = tuple[str, ...]
Device = Any  # a jax.Device, which has no type stubs


@dataclasses.dataclass(frozen=True)
class Rules:
    """Logical axis -> the mesh axes that split it; `None` or an axis that is not listed is not split.

    Raises `UserError` for a mesh axis that does not exist or is named twice in one entry.
    """

    axes: Mapping[str, str | MeshAxes | None]

    def __post_init__(self):
        object.__setattr__(self, "axes", MappingProxyType(dict(self.axes)))
        for name in self.axes:
            _once(self.mesh_axes(name), f"the rule for {name!r}")
            for axis in self.mesh_axes(name):
                if axis not in MESH_AXES:
                    raise unknown(f"mesh axis in the rule for {name!r}:", axis, MESH_AXES)

    def mesh_axes(self, name: str | None) -> MeshAxes:
        """The mesh axes that split logical axis `name`, largest stride first; () when it is whole."""
        found = self.axes.get(name) if name is not None else None
        return (found,) if isinstance(found, str) else tuple(found or ())

    def spec(self, logical_axes: Sequence[str | None]) -> PartitionSpec:
        """The partition of an array with these logical axes. Raises `UserError` if two of them share a mesh axis."""
        split = [self.mesh_axes(name) for name in logical_axes]
        _once([axis for axes in split for axis in axes], f"an array with axes {tuple(logical_axes)}")
        return PartitionSpec(*(axes if len(axes) > 1 else axes[0] if axes else None for axes in split))

    def replace(self, **axes: str | MeshAxes | None) -> "Rules":
        """A copy with some entries changed."""
        return Rules({**self.axes, **axes})


def _once(axes: Sequence[str], where: str) -> None:
    repeated = sorted({axis for axis in axes if list(axes).count(axis) > 1})
    if repeated:
        raise UserError(f"{where} would be split twice over mesh axis {repeated[0]!r}; change one of the rules")


# Rows over both axes that hold copies or shards of the model; parameters over fsdp by their model dimension.
FSDP = Rules({"batch": ("data", "fsdp"), "embed": "fsdp"})
# And the inner dimension of every layer over tensor: for models whose single layer is too large or too slow.
TENSOR = FSDP.replace(vocab="tensor", heads="tensor", kv_heads="tensor", mlp="tensor")
# And the tokens of a row over context: for rows too long for one device. Keys and values are gathered for attention.
CONTEXT = TENSOR.replace(sequence="context")

PRESETS: dict[str, tuple[dict[str, int], Rules]] = {
    "fsdp": ({"fsdp": -1}, FSDP),
    "fsdp_tp": ({"fsdp": -1, "tensor": 2}, TENSOR),
    "fsdp_tp_context": ({"fsdp": -1, "context": 2, "tensor": 2}, CONTEXT),
    "multislice": ({"data": 2, "fsdp": -1}, FSDP),  # the model in each slice: gradients alone cross between them
}


class Layout(NamedTuple):
    """The two settings of a recipe that lay a run over devices: `Recipe(..., **preset("fsdp_tp")._asdict())`."""

    mesh: dict[str, int]
    rules: Rules


def preset(name: str, **sizes: int) -> Layout:
    """A named layout, with other `sizes` of the axes that it has: `preset("fsdp_tp", tensor=4)`, or
    `preset("multislice", data=4)` for four slices. Raises `UserError` for an unknown name or an axis that it has not.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    shape, rules = PRESETS[name]
    for axis in sizes:
        if axis not in shape:
            raise unknown(f"axis of preset {name}:", axis, shape)
    return Layout({**shape, **sizes}, rules)


def make_mesh(shape: Mapping[str, int], devices: Sequence[Device] | None = None) -> Mesh:
    """A mesh of all `devices` (default: all there are) with axes data, fsdp, context, tensor; an axis not in `shape`
    has size 1.

    One size may be -1: whatever is left. Axis types are Auto. Devices of several slices lie along data, so that no
    other axis crosses the network between them. Raises `UserError` if the shape does not use all devices, or data does
    not divide by the slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    for axis in shape:
        if axis not in MESH_AXES:
            raise unknown("mesh axis", axis, MESH_AXES)
    sizes = _fill([shape.get(axis, 1) for axis in MESH_AXES], len(devices))
    if sizes is None:
        asked = " x ".join(f"{axis}={size}" for axis, size in shape.items())
        raise UserError(
            f"mesh {asked or '(one device)'} does not fit: there are {len(devices)} {devices[0].platform} devices; "
            "the sizes must multiply to that number (one may be -1, meaning the rest)"
        )
    types = (AxisType.Auto,) * len(MESH_AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1:
        return Mesh(_hybrid(sizes, slices, devices), MESH_AXES, axis_types=types)
    return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=types, devices=devices)


def _hybrid(sizes: list[int], slices: int, devices: list[Device]) -> Any:
    data, *inner = sizes
    if data % slices:
        raise UserError(
            f"mesh axis data has size {data}, which {slices} slices do not divide; only data may cross slices "
            f"(preset multislice, data={slices})"
        )
    return mesh_utils.create_hybrid_device_mesh([data // slices, *inner], [slices, *(1 for _ in inner)], devices)


def _fill(sizes: list[int], num_devices: int) -> list[int] | None:
    """The sizes with -1 replaced, or None if they do not multiply to `num_devices`."""
    known = math.prod(size for size in sizes if size != -1)
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1 or num_devices % known:
        return None
    sizes = [num_devices // known if size == -1 else size for size in sizes]
    return sizes if math.prod(sizes) == num_devices else None


def sharding(mesh: Mesh, rules: Rules, logical_axes: LogicalAxes) -> NamedSharding:
    """Where an array with these logical axes lies on `mesh`."""
    return NamedSharding(mesh, rules.spec(logical_axes))


def shardings(mesh: Mesh, rules: Rules, axes: Any) -> Any:
    """`sharding` over a tree whose leaves are tuples of logical axes."""
    return jax.tree.map(lambda leaf: sharding(mesh, rules, leaf), axes, is_leaf=is_axes)


def is_axes(leaf: Any) -> bool:
    """True for a tuple of logical axis names: a leaf of a Student's `axes`."""
    return isinstance(leaf, tuple) and all(name is None or isinstance(name, str) for name in leaf)


def check_divides(mesh: Mesh, rules: Rules, logical_axes: LogicalAxes, shape: Sequence[int], what: str) -> None:
    """Raises `UserError` if a dimension of `shape` cannot be split evenly over the mesh axes that its rule names."""
    for name, size in zip(logical_axes, shape, strict=True):
        parts = math.prod(mesh.shape[axis] for axis in rules.mesh_axes(name))
        if size % parts:
            raise UserError(
                f"{what}: axis {name!r} has size {size}, which {parts} devices (mesh axes "
                f"{', '.join(rules.mesh_axes(name))}) do not divide; change the mesh, the rules or the size"
            )
