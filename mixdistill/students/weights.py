"""Published checkpoints in and out: safetensors <-> parameters by a table of name patterns. numpy only, no pickle.

A torch linear layer keeps [out, in]; ours keep the input dimensions first and heads as an axis of their own. So every
entry needs to know one thing beside its two names: how many of our axes are inputs.
"""

import dataclasses
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from mixdistill.errors import UserError
from mixdistill.students.config import DecoderConfig, Dtype
from mixdistill.students.decoder import make_student
from mixdistill.students.published import config_from_json, config_to_json
from mixdistill.students.student import Axes, Params, Student

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
IGNORED = re.compile(r".*rotary_emb\.inv_freq$")  # older files store what the configuration already says


class Entry(NamedTuple):
    """One parameter. `{}` in the published name is the layer; then ours is stacked over layers."""

    path: tuple[str, ...]
    inputs: int = 0  # leading axes of ours that are inputs of a matrix; 0: the same order of axes


TABLE: dict[str, Entry] = {
    "model.embed_tokens.weight": Entry(("embed",)),
    "model.norm.weight": Entry(("norm",)),
    "lm_head.weight": Entry(("unembed",), 1),
    "model.layers.{}.input_layernorm.weight": Entry(("blocks", "attention_norm")),
    "model.layers.{}.post_attention_layernorm.weight": Entry(("blocks", "mlp_norm")),
    "model.layers.{}.self_attn.q_proj.weight": Entry(("blocks", "attention", "query"), 1),
    "model.layers.{}.self_attn.k_proj.weight": Entry(("blocks", "attention", "key"), 1),
    "model.layers.{}.self_attn.v_proj.weight": Entry(("blocks", "attention", "value"), 1),
    "model.layers.{}.self_attn.o_proj.weight": Entry(("blocks", "attention", "out"), 2),
    "model.layers.{}.self_attn.q_proj.bias": Entry(("blocks", "attention", "query_bias")),
    "model.layers.{}.self_attn.k_proj.bias": Entry(("blocks", "attention", "key_bias")),
    "model.layers.{}.self_attn.v_proj.bias": Entry(("blocks", "attention", "value_bias")),
    "model.layers.{}.self_attn.q_norm.weight": Entry(("blocks", "attention", "query_norm")),
    "model.layers.{}.self_attn.k_norm.weight": Entry(("blocks", "attention", "key_norm")),
    "model.layers.{}.mlp.gate_proj.weight": Entry(("blocks", "mlp", "gate"), 1),
    "model.layers.{}.mlp.up_proj.weight": Entry(("blocks", "mlp", "up"), 1),
    "model.layers.{}.mlp.down_proj.weight": Entry(("blocks", "mlp", "down"), 1),
}


def load_hf(
    folder: Path | str,
    *,
    dtype: Dtype = "float32",
    place: Callable[[np.ndarray, tuple[str | None, ...]], Any] = lambda array, axes: jax.device_put(array),
) -> tuple[Student, Params]:
    """The student and parameters of a folder with config.json and safetensors (Llama, Qwen2 and Qwen3 models).

    `dtype` is that of parameters and activations. `place(array, logical axes)` puts each parameter on its devices; one
    parameter at a time is held in host memory. Raises `UserError` for an unknown architecture, a missing, unknown or
    wrongly shaped tensor, and for folders that hold pickled weights only.
    """
    folder = Path(folder)
    config = dataclasses.replace(read_config(folder), dtype=dtype, param_dtype=dtype)
    student = make_student(config)
    shapes = _flat(jax.eval_shape(student.init, jax.random.key(0)))
    files = _files(folder)
    expected = dict(_names(config, shapes))
    _check_names(folder, files, expected)
    params: Params = {}
    for published, entry in TABLE.items():
        if entry.path in shapes:
            want = shapes[entry.path]
            array = _read(files, published, entry, want.shape, config).astype(want.dtype)
            _put(params, entry.path, place(array, _at(student.axes, entry.path)))
    return student, params


def save_hf(student: Student, params: Params, folder: Path | str, *, max_length: int = 32_768) -> None:
    """Writes config.json and model.safetensors as transformers reads them; `max_length`, in tokens, is what the model
    is declared good for. Raises `UserError` when the folder exists or no published architecture has these features."""
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"{folder} exists already; give a folder that does not")
    if student.config is None:
        raise UserError("this student is a foreign module; only decoders can be written for transformers")
    config = student.config
    described = config_to_json(config, max_length=max_length)
    flat = _flat(params)
    tensors: dict[str, np.ndarray] = {}
    for published, entry in TABLE.items():
        if entry.path in flat:
            tensors |= _write(np.asarray(jax.device_get(flat[entry.path])), published, entry)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as unfinished:
        inner = Path(unfinished) / "folder"
        inner.mkdir()
        (inner / CONFIG).write_text(json.dumps(described, indent=2) + "\n")
        safetensors.numpy.save_file(tensors, inner / WEIGHTS, metadata={"format": "pt"})
        inner.rename(folder)


def read_config(folder: Path | str) -> DecoderConfig:
    """The configuration of a published checkpoint (float32). Raises `UserError` for what the decoder does not have."""
    path = Path(folder) / CONFIG
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the folder of a published checkpoint") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    return config_from_json(values, where=str(path))


def _names(config: DecoderConfig, shapes: Mapping[tuple, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Published name and shape of every tensor that the configuration asks for."""
    for published, entry in TABLE.items():
        if entry.path not in shapes:
            continue
        shape = shapes[entry.path].shape
        layered = "{}" in published
        torch_shape = _torch_shape(shape[1:] if layered else shape, entry, published)
        for layer in range(config.layers if layered else 1):
            yield published.format(layer), torch_shape


def _torch_shape(shape: tuple[int, ...], entry: Entry, published: str) -> tuple[int, ...]:
    if entry.inputs:
        return int(np.prod(shape[entry.inputs :])), int(np.prod(shape[: entry.inputs]))
    return (int(np.prod(shape)),) if published.endswith("bias") else shape


def _files(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file that holds it."""
    if (folder / INDEX).is_file():
        table = json.loads((folder / INDEX).read_text())["weight_map"]
        names = sorted(set(table.values()))
    elif (folder / WEIGHTS).is_file():
        names = [WEIGHTS]
    else:
        pickled = [path.name for path in sorted(folder.glob("*.bin"))]
        also = f"; {', '.join(pickled)} is pickled, which can run code, and is not read" if pickled else ""
        raise UserError(f"{folder} has neither {WEIGHTS} nor {INDEX}{also}")
    files: dict[str, Path] = {}
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(f"{folder / INDEX} names {name!r}, which is not a file of that folder")
        try:
            with safetensors.safe_open(folder / name, framework="numpy") as file:
                files |= dict.fromkeys(file.keys(), folder / name)
        except safetensors.SafetensorError as error:
            raise UserError(f"{folder / name} cannot be read: {error}") from None
    return {name: path for name, path in files.items() if not IGNORED.match(name)}


def _check_names(folder: Path, files: Mapping[str, Path], expected: Mapping[str, tuple[int, ...]]) -> None:
    unknown = sorted(set(files) - set(expected) - {"lm_head.weight"})  # tied models may repeat their embedding
    missing = sorted(set(expected) - set(files))
    for names, what in ((missing, "lacks"), (unknown, "has tensors that the decoder does not know:")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"{folder} {what} {', '.join(names[:3])}{more}")
    for path in set(files.values()):
        with safetensors.safe_open(path, framework="numpy") as file:
            for name in set(file.keys()) & set(expected):
                given = tuple(file.get_slice(name).get_shape())
                if given != expected[name]:
                    raise UserError(f"{path.name}: {name} has shape {given}; {CONFIG} asks for {expected[name]}")


def _read(files: Mapping[str, Path], published: str, entry: Entry, shape: tuple[int, ...], config: DecoderConfig):
    """One of our parameters: all layers stacked, in the dtype of the file."""

    def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
        with safetensors.safe_open(files[name], framework="numpy") as file:
            value = file.get_tensor(name)
        return (value.T if entry.inputs else value).reshape(shape)

    if "{}" not in published:
        return tensor(published, shape)
    return np.stack([tensor(published.format(layer), shape[1:]) for layer in range(config.layers)])


def _write(value: np.ndarray, published: str, entry: Entry) -> dict[str, np.ndarray]:
    """The published tensors of one of our parameters."""

    def tensor(value: np.ndarray) -> np.ndarray:
        shape = _torch_shape(value.shape, entry, published)
        return np.ascontiguousarray(value.reshape(shape[::-1]).T if entry.inputs else value.reshape(shape))

    if "{}" not in published:
        return {published: tensor(value)}
    return {published.format(layer): tensor(part) for layer, part in enumerate(value)}


def _flat(tree: Params) -> dict[tuple[str, ...], Any]:
    return {tuple(key.key for key in path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _at(tree: Axes, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _put(tree: Params, path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
