"""Files and dataset folders -> raw rows, whatever the rows are."""

from collections.abc import Iterator
from pathlib import Path

from mixdistill.traces.readers.folders import read_folder
from mixdistill.traces.readers.json_rows import read_json
from mixdistill.traces.readers.row import BadRow, Raw
from mixdistill.traces.readers.tables import read_arrow, read_parquet


def read_rows(path: Path) -> Iterator[Raw | BadRow]:
    """The rows of a file or dataset folder, in a fixed order; told by their first bytes, not by name."""
    if path.is_dir():
        yield from read_folder(path)
        return
    with path.open("rb") as file:
        magic = file.read(8)
    if not magic:
        yield BadRow(str(path), 0, "empty file")
    elif magic.startswith(b"PAR1"):
        yield from read_parquet(path)
    elif magic.startswith((b"ARROW1", b"\xff\xff\xff\xff")) or path.suffix == ".arrow":
        yield from read_arrow(path)
    else:
        yield from read_json(path)
