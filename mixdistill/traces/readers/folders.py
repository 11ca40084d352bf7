"""Folders that are one dataset -> raw rows: TFDS, or what the `datasets` library saved."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from mixdistill.traces.readers.row import BadRow, Raw
from mixdistill.traces.readers.tables import read_arrow, read_parquet

STATE = "state.json"  # of `datasets`: which files, in which order


def read_folder(folder: Path) -> Iterator[Raw | BadRow]:
    """The rows of the dataset in `folder`, in its order, numbered from 1."""
    from mixdistill.traces.readers import tfds

    if (folder / tfds.FEATURES).is_file():
        yield from tfds.read_tfds(folder)
        return
    files = _files(folder)
    if not files:
        yield BadRow(str(folder), 0, "no Arrow or Parquet file in the dataset folder")
    for number, row in enumerate(itertools.chain.from_iterable(map(_read, files)), start=1):
        yield row._replace(line=number)


def _read(path: Path) -> Iterator[Raw | BadRow]:
    return read_arrow(path) if path.suffix == ".arrow" else read_parquet(path)


def _files(folder: Path) -> list[Path]:
    try:
        state = json.loads((folder / STATE).read_bytes())
        # Names only: a description may not point out of its folder.
        return [folder / Path(file["filename"]).name for file in state["_data_files"]]
    except (OSError, ValueError, LookupError, TypeError):
        return sorted(path for path in folder.iterdir() if path.suffix in (".arrow", ".parquet"))
