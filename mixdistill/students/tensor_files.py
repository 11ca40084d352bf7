"""Which file of a published checkpoint holds which tensor; whatever is not as it should be is refused by name."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import safetensors

from mixdistill.errors import UserError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = ("F32", "BF16", "F16", "F64")
IGNORED = re.compile(r".*rotary_emb\.inv_freq$")  # older files store what the configuration already says
REPEATED = "lm_head.weight"  # tied models may repeat their embedding


def tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file that holds it. Raises `UserError` for an index that names files outside `folder` or
    tensors that its files lack, for broken files and for folders with pickled weights alone."""
    if (folder / INDEX).is_file():
        table = _index(folder / INDEX)
    elif (folder / WEIGHTS).is_file():
        table = None
    else:
        pickled = [path.name for path in sorted([*folder.glob("*.bin"), *folder.glob("*.pt*")])]
        also = f"; {', '.join(pickled)} is pickled, which can run code, and is not read" if pickled else ""
        raise UserError(f"{folder} has neither {WEIGHTS} nor {INDEX}{also}")
    files: dict[str, Path] = {}
    for name in [WEIGHTS] if table is None else sorted(set(table.values())):
        held = _tensors_of(folder / name)
        twice = sorted(set(held) & set(files))
        if twice:
            raise UserError(f"{folder / name}: {twice[0]} stands in {files[twice[0]].name} too")
        files |= dict.fromkeys(held, folder / name)
    for tensor, name in (table or {}).items():
        if files.get(tensor) != folder / name:
            raise UserError(f"{folder / INDEX} says that {tensor} is in {name}, which does not hold it")
    return {name: path for name, path in files.items() if not IGNORED.match(name)}


def _index(path: Path) -> dict[str, str]:
    try:
        table = json.loads(path.read_text())["weight_map"]
        assert all(isinstance(name, str) for name in table.values())
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError):
        raise UserError(f"{path} is no index: it needs an object weight_map of tensor and file names") from None
    there = {file.name for file in path.parent.iterdir() if file.is_file()}
    for tensor, name in table.items():
        if name not in there:
            raise UserError(f"{path} names {name!r} for {tensor}, which is not a file of that folder")
    return table


def _tensors_of(path: Path) -> list[str]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return list(file.keys())
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def check_tensors(folder: Path, files: Mapping[str, Path], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises `UserError` for a missing, unknown or wrongly shaped tensor, or one whose numbers are of another kind."""
    unknown = sorted(set(files) - set(expected) - {REPEATED})
    missing = sorted(set(expected) - set(files))
    for names, what in ((missing, "lacks"), (unknown, "has tensors that the decoder does not know:")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"{folder} {what} {', '.join(names[:3])}{more}")
    for path in sorted(set(files.values())):
        with safetensors.safe_open(path, framework="numpy") as file:
            for name in sorted(set(file.keys()) & set(expected)):
                stored = file.get_slice(name)
                if (given := tuple(stored.get_shape())) != expected[name]:
                    raise UserError(f"{path.name}: {name} has shape {given}; config.json asks for {expected[name]}")
                if stored.get_dtype() not in DTYPES:
                    raise UserError(f"{path.name}: {name} is of {stored.get_dtype()}; known: {', '.join(DTYPES)}")
