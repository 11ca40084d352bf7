"""Parquet and Arrow files -> raw rows, a record batch at a time. Reads what `datasets` saves without that library."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from mixdistill.traces.readers.row import BadRow, Raw

BATCH_ROWS = 256  # rows of long traces in memory at once: some tens of MB


def read_parquet(path: Path) -> Iterator[Raw | BadRow]:
    """The rows of a Parquet file; `line` is the row's number."""
    yield from _rows(path, lambda: pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=BATCH_ROWS), "Parquet")


def read_arrow(path: Path) -> Iterator[Raw | BadRow]:
    """The rows of an Arrow file, in the stream format (`datasets`) or the file format (Feather)."""
    yield from _rows(path, lambda: _arrow_batches(path), "Arrow")


def _arrow_batches(path: Path) -> Iterator[pyarrow.RecordBatch]:
    with pyarrow.memory_map(str(path)) as source:
        if source.read(6) == b"ARROW1":
            reader = pyarrow.ipc.open_file(source)
            yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            source.seek(0)
            yield from pyarrow.ipc.open_stream(source)


def _rows(path: Path, batches, kind: str) -> Iterator[Raw | BadRow]:
    number = 0
    try:
        for batch in batches():
            batch.validate(full=True)  # offsets out of a damaged file would be followed to anywhere in memory
            for start in range(0, batch.num_rows, BATCH_ROWS):
                for row in batch.slice(start, BATCH_ROWS).to_pylist():
                    number += 1
                    yield Raw(number, row)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, EOFError) as error:
        yield BadRow(str(path), number and number + 1, f"damaged {kind} file", str(error)[:120])
