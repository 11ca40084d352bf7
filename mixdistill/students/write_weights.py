"""A published checkpoint, written one parameter at a time into a folder that appears when it is whole."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from mixdistill.errors import UserError
from mixdistill.students import safetensors_file
from mixdistill.students.config import DecoderConfig
from mixdistill.students.published import config_to_json
from mixdistill.students.safetensors_file import Spec
from mixdistill.students.tensor_files import INDEX, WEIGHTS
from mixdistill.students.tensor_names import Entry, entries

SHARD_BYTES = 5 * 10**9
Read = Callable[[tuple[str, ...]], np.ndarray]


def write_hf(
    config: DecoderConfig | None,
    specs: Mapping[tuple[str, ...], Spec],
    read: Read,
    folder: Path | str,
    *,
    max_length: int,
    shard_bytes: int,
    beside: Callable[[Path], None] | None,
) -> None:
    """A published checkpoint from parameters that are `read` by path, one after the other.

    A parameter never crosses files, so one of them at a time is held in memory; a file has at most `shard_bytes` unless
    one parameter has more. `max_length`, in tokens, is what the model is declared good for. `beside` may write more
    files. All of it stands in a temporary folder, renamed at the end. Raises `UserError` when the folder exists or no
    published architecture computes this student.
    """
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"{folder} exists already; give a folder that does not")
    if config is None:
        raise UserError("this student is a foreign module; only decoders can be written for transformers")
    described = config_to_json(config, max_length=max_length)
    kinds = {spec.dtype for spec in specs.values()}
    described["torch_dtype"] = kinds.pop() if len(kinds) == 1 else "float32"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as unfinished:
        inner = Path(unfinished) / "folder"
        inner.mkdir()
        (inner / "config.json").write_text(json.dumps(described, indent=2) + "\n")
        _write_shards(inner, _shards(config, specs, shard_bytes), specs, read, config)
        if beside is not None:
            beside(inner)
        shutil.copymode(folder.parent, inner)
        inner.rename(folder)


def _shards(config: DecoderConfig, specs: Mapping[tuple[str, ...], Spec], limit: int) -> list[list[Entry]]:
    """Entries file by file."""
    shards: list[list[Entry]] = []
    room = 0
    for entry in entries(config, specs):
        size = specs[entry.path].num_bytes
        if not shards or size > room:
            shards.append([])
            room = limit
        shards[-1].append(entry)
        room -= size
    return shards


def _write_shards(folder: Path, shards: list[list[Entry]], specs, read: Read, config: DecoderConfig) -> None:
    table: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = WEIGHTS if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        wanted = {
            tensor: Spec(specs[entry.path].dtype, entry.published_shape(specs[entry.path].shape))
            for entry in shard
            for tensor in entry.names(config.layers)
        }
        safetensors_file.write(folder / name, wanted, _tensors(shard, read))
        table |= dict.fromkeys(wanted, name)
    if len(shards) > 1:
        total = sum(spec.num_bytes for spec in specs.values())
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(table.items()))}, indent=2)
        (folder / INDEX).write_text(text + "\n")


def _tensors(shard: list[Entry], read: Read) -> Iterator[tuple[str, np.ndarray]]:
    for entry in shard:
        value = read(entry.path)
        for name, part in zip(entry.names(len(value)), value if entry.layered else [value], strict=True):
            yield name, entry.published(part)
        del value, part
