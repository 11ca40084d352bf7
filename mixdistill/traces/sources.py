"""Sources -> rows: the files behind the arguments of `prepare`, and their traces and bad rows in a fixed order."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mixdistill.errors import UserError, unknown
from mixdistill.traces import manifest, readers
from mixdistill.traces.readers import mapped
from mixdistill.traces.shard_index import Quarantined
from mixdistill.traces.trace import Trace

SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet", ".arrow")
COMPRESSIONS = (".gz", ".zst", ".zstd")
DATASET_INFO = "dataset_info.json"  # a folder with this file is one dataset (Hugging Face on disk, or TFDS)
NOT_TRACES = {DATASET_INFO, "dataset_dict.json", "state.json", "features.json"}


class File(NamedTuple):
    """A trace file, or a folder that is one dataset."""

    path: Path
    name: str  # from the source on, the same on every machine: it stands in the quarantine
    chosen: bool  # given by name, not found in a folder: if it cannot be read, that is an error
    outside: bool = False  # a symbolic link that leads out of the source: not followed


@dataclass(frozen=True)
class ReadAs:
    """How to read the files; None: find out."""

    format: str | None = None
    mapping: Mapping[str, str] | None = None
    teacher: str | None = None
    teacher_field: str | None = None

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in readers.FORMATS:
            raise unknown("format", self.format, readers.FORMATS)
        mapped.check(self.mapping or {})


class Row(NamedTuple):
    """A trace and where it came from."""

    trace: Trace
    file: str
    line: int  # from 1; 0: unknown


def find_files(sources: Sequence[Path | str]) -> list[File]:
    """The trace files among `sources` and, recursively, in those that are folders; folders in alphabetical order.
    Raises `UserError` for a source that does not exist or a folder without any."""
    files: list[File] = []
    for source in map(Path, sources):
        if not source.exists():
            raise UserError(f"no such source: {source}; give files or folders of traces")
        found = [
            File(path, _name(source, path), path == source, path != source and _leads_out(path, source))
            for path in _walk(source)
        ]
        if not found:
            raise UserError(f"no trace files in {source}; known: {', '.join(SUFFIXES)}, also with .gz or .zst")
        files += found
    return files


def stamp(path: Path) -> list[int]:
    """Sizes and times of change of a file, or of all files in a folder."""
    files = sorted(path.rglob("*")) if path.is_dir() and not path.is_symlink() else [path]
    return [number for file in files for number in (file.lstat().st_size, file.lstat().st_mtime_ns)]


def _walk(source: Path) -> Iterator[Path]:
    if source.is_file() or (source / DATASET_INFO).is_file():
        yield source
        return
    if (source / manifest.MANIFEST).is_file():
        return  # shards that an earlier run made here
    for path in sorted(source.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and path.is_symlink():
            yield path  # followed, it could lead anywhere, also in a circle
        elif path.is_dir():
            yield from _walk(path)
        elif _may_hold_traces(path):
            yield path


def _leads_out(path: Path, source: Path) -> bool:
    """Whether a link is a folder, or a file that does not lie in the source."""
    return path.is_symlink() and (path.is_dir() or not path.resolve().is_relative_to(source.resolve()))


def _may_hold_traces(path: Path) -> bool:
    plain = path.with_suffix("") if path.suffix in COMPRESSIONS else path
    return plain.suffix in SUFFIXES and path.name not in NOT_TRACES


def _name(source: Path, path: Path) -> str:
    return (Path(source.resolve().name) / path.relative_to(source)).as_posix()


def read_file(file: File, read_as: ReadAs) -> Iterator[Row | Quarantined]:
    """The rows of one file in order. A file that no reader takes raises `UserError` if it was chosen by name; one that
    lay in a folder is one quarantined row."""
    if file.outside:
        yield Quarantined(file.name, 0, "a symbolic link that is not followed; give what it leads to as a source")
        return
    try:
        rows = readers.read(file.path, **vars(read_as))
    except UserError as error:
        if file.chosen:
            raise
        yield Quarantined(file.name, 0, "not a file of traces", excerpt=str(error).replace(str(file.path), file.name))
        return
    for row in rows:
        if isinstance(row, Trace):
            yield Row(row, file.name, row.meta["line"])
        else:
            yield Quarantined(file.name, row.line, row.reason, excerpt=row.excerpt)
