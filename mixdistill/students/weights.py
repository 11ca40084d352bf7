"""Published checkpoints in and out: safetensors <-> parameters. numpy only, no pickle, never more in host memory than
one parameter: what is read goes slice by slice to the devices that hold it, what is written leaves one by one."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes  # noqa: F401 - lets numpy know bfloat16
import numpy as np
import safetensors
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from mixdistill.errors import UserError
from mixdistill.mesh import FSDP, Rules, check_divides, sharding
from mixdistill.students.config import DecoderConfig, Dtype
from mixdistill.students.decoder import make_student
from mixdistill.students.published import config_from_json
from mixdistill.students.safetensors_file import Spec
from mixdistill.students.student import Params, Student
from mixdistill.students.tensor_files import check_tensors, tensor_files
from mixdistill.students.tensor_names import Entry, entries
from mixdistill.students.trees import at, flat, nest
from mixdistill.students.write_weights import SHARD_BYTES, write_hf

CONFIG = "config.json"
Index = tuple[slice, ...]


def load_hf(
    folder: Path | str, *, dtype: Dtype = "float32", mesh: Mesh | None = None, rules: Rules | None = None
) -> tuple[Student, Params]:
    """The student and parameters of a folder with config.json and safetensors (Llama 3, Mistral, Qwen2.5, Qwen3 and
    Gemma 3 text models).

    `dtype` is that of parameters and activations. With a `mesh` every device is given its own slices, by `rules`
    (default: FSDP); nothing is whole anywhere. Raises `UserError` for an unknown architecture, a missing, unknown or
    wrongly shaped tensor, a parameter that the mesh does not divide, and folders that hold pickled weights only.
    """
    folder = Path(folder)
    config = dataclasses.replace(read_config(folder), dtype=dtype, param_dtype=dtype)
    return make_student(config), load_params(folder, config, mesh=mesh, rules=rules)


def load_params(
    folder: Path | str, config: DecoderConfig, *, mesh: Mesh | None = None, rules: Rules | None = None
) -> Params:
    """As `load_hf`, of a configuration that may differ from the folder's in what changes no shape."""
    folder, student = Path(folder), make_student(config)
    shapes = flat(jax.eval_shape(student.init, jax.random.key(0)))
    files = check_folder(folder, config)
    params = {}
    for entry in entries(config, shapes):
        like = shapes[entry.path]
        where = _where(at(student.axes, entry.path), like.shape, entry, mesh, rules or FSDP)
        read = _reader(files, entry, like.shape, like.dtype)
        params[entry.path] = jax.make_array_from_callback(like.shape, where, read)
    return nest(params)


def check_folder(folder: Path, config: DecoderConfig) -> dict[str, Path]:
    """Tensor name -> its file, after every name and shape was found to be what `config` asks for."""
    shapes = flat(jax.eval_shape(make_student(config).init, jax.random.key(0)))
    files = tensor_files(folder)
    expected = {
        name: entry.published_shape(shapes[entry.path].shape)
        for entry in entries(config, shapes)
        for name in entry.names(config.layers)
    }
    check_tensors(folder, files, expected)
    return files


def save_hf(
    student: Student,
    params: Params,
    folder: Path | str,
    *,
    max_length: int = 32_768,
    shard_bytes: int = SHARD_BYTES,
    beside: Callable[[Path], None] | None = None,
) -> None:
    """Writes config.json and safetensors as transformers reads them; see `write_hf`."""
    tree = flat(params)
    write_hf(
        student.config,
        {path: Spec(leaf.dtype.name, leaf.shape) for path, leaf in tree.items()},
        lambda path: np.asarray(jax.device_get(tree[path])),
        folder,
        max_length=max_length,
        shard_bytes=shard_bytes,
        beside=beside,
    )


def copy_hf(folder: Path, to: Path, dtype: Dtype, *, beside: Callable[[Path], None] | None = None) -> None:
    """A published checkpoint as we would write it: checked, with no file but weights and configuration, in `dtype`."""
    config = read_config(folder)
    files = check_folder(folder, config)
    shapes = flat(jax.eval_shape(make_student(config).init, jax.random.key(0)))
    known = {entry.path: entry for entry in entries(config, shapes)}

    def read(path: tuple[str, ...]) -> np.ndarray:
        shape = shapes[path].shape
        return _reader(files, known[path], shape, np.dtype(dtype))((slice(None),) * len(shape))

    length = json.loads((folder / CONFIG).read_text()).get("max_position_embeddings", 32_768)
    specs = {path: Spec(dtype, leaf.shape) for path, leaf in shapes.items()}
    write_hf(config, specs, read, to, max_length=length, shard_bytes=SHARD_BYTES, beside=beside)


def read_config(folder: Path | str) -> DecoderConfig:
    """The configuration of a published checkpoint (float32). Raises `UserError` for what the decoder does not have."""
    path = Path(folder) / CONFIG
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the folder of a published checkpoint") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    return config_from_json(values, where=str(path))


def _where(
    axes: tuple[str | None, ...], shape: tuple[int, ...], entry: Entry, mesh: Mesh | None, rules: Rules
) -> Sharding:
    if mesh is None:
        return SingleDeviceSharding(jax.local_devices()[0])
    check_divides(mesh, rules, axes, shape, f"parameter {'/'.join(entry.path)}")
    return sharding(mesh, rules, axes)


def _reader(files: Mapping[str, Path], entry: Entry, shape: tuple[int, ...], dtype) -> Callable[[Any], np.ndarray]:
    """Reads a slice of one of our parameters, and no more of the files than it needs."""

    def read(index: Index) -> np.ndarray:
        spans = [range(*part.indices(size)) for part, size in zip(index, shape, strict=True)]
        if not entry.layered:
            return _slice(files[entry.name], entry.name, entry, spans, shape).astype(dtype, copy=False)
        out = np.empty([len(span) for span in spans], dtype)
        for place, layer in enumerate(spans[0]):
            name = entry.name.format(layer)
            out[place] = _slice(files[name], name, entry, spans[1:], shape[1:])
        return out

    return read


def _slice(path: Path, name: str, entry: Entry, spans: list[range], shape: tuple[int, ...]) -> np.ndarray:
    """`spans` of our axes, out of the published tensor."""
    inputs, outputs = _joined(spans[: entry.inputs], shape), _joined(spans[entry.inputs :], shape[entry.inputs :])
    # Opened for each slice: a file that stays mapped keeps its pages in memory.
    with safetensors.safe_open(path, framework="numpy") as file:
        stored = file.get_slice(name)
        if entry.inputs:
            found = stored[outputs.taken, inputs.taken].T.reshape(inputs.shape + outputs.shape)
        elif len(stored.get_shape()) == len(shape):
            return stored[_plain(spans)]
        else:
            found = stored[outputs.taken].reshape(outputs.shape)
    return found[inputs.rest + outputs.rest]


@dataclasses.dataclass(frozen=True)
class _Joined:
    """A slice of axes that a file holds as one: what is read, its shape, and what is then kept of it."""

    taken: slice
    shape: tuple[int, ...]
    rest: Index


def _joined(spans: list[range], shape: tuple[int, ...]) -> _Joined:
    # Only the leading axis is cut in the file: what it holds then lies together.
    if not spans:
        return _Joined(slice(0, 1), (), ())
    inner = tuple(shape[1 : len(spans)])
    size = int(np.prod(inner))
    taken = slice(spans[0].start * size, spans[0].stop * size)
    return _Joined(taken, (len(spans[0]), *inner), (slice(None), *_plain(spans[1:])))


def _plain(spans: list[range]) -> Index:
    return tuple(slice(span.start, span.stop) for span in spans)
