"""The ledger: what a student thinks of every token of some shards, in a folder beside them.

    SIDECAR/STUDENT/about.json          the student's fingerprint and name, the fields and their types
    SIDECAR/STUDENT/CONTENT.npz         some traces of one shard file under one context

CONTENT is a hash of the shard file's checksum, the context and the traces' places in the file, so scores belong to
bytes and not to names: shards that moved, or that grew by a file, keep theirs; shards that changed have none.
"""

import functools
import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mixdistill.errors import UserError, unknown
from mixdistill.traces.shards import Shards

ABOUT, SCHEMA_VERSION = "about.json", 1
BLOCK_TRACES = 1024  # a file of the ledger: what an interruption loses at most
SHORT = 16  # hex digits of a hash in a name
SUMMARY = "summary/"  # before the names of columns with an entry a trace


class Block(NamedTuple):
    """Some traces of one shard file, and the file of the ledger that holds their scores under one context."""

    first: int  # trace
    stop: int
    path: Path


def blocks(folder: Path, shards: Shards, context: str) -> Iterator[Block]:
    """All blocks of `shards` under `context`, scored already or not. `folder` is SIDECAR/STUDENT."""
    first = 0
    for name, count in shards.manifest["shards"].items():
        checksum = shards.manifest["files"][name]["sha256"]
        for start in range(0, count, BLOCK_TRACES):
            stop = min(start + BLOCK_TRACES, count)
            content = hashlib.sha256(f"{checksum} {start}:{stop} {context}".encode()).hexdigest()[:SHORT]
            yield Block(first + start, first + stop, folder / f"{content}.npz")
        first += count


def write_block(
    path: Path, offsets: np.ndarray, fields: Mapping[str, np.ndarray], summary: Mapping[str, np.ndarray]
) -> None:
    """All or nothing. `offsets` int64 [traces + 1]: where each trace's entries start in every field; `summary` has
    an entry a trace."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with temporary.open("wb") as file:
            columns = {SUMMARY + name: column for name, column in summary.items()}
            np.savez(file, allow_pickle=False, **{"offsets": offsets, **fields, **columns})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_about(folder: Path, about: Mapping[str, Any]) -> None:
    """about.json of SIDECAR/STUDENT. Raises `UserError` where the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{os.getpid()}.{ABOUT}"
        temporary.write_text(json.dumps({"schema": SCHEMA_VERSION, **about}, indent=1) + "\n", encoding="utf-8")
        temporary.replace(folder / ABOUT)
    except OSError as error:
        raise UserError(f"the ledger {folder} cannot be written ({error.strerror}); choose another --out") from None


def default_sidecar(shards: Shards) -> Path:
    """SHARDS.ledger, beside the shards."""
    return shards.path.resolve().with_name(shards.path.resolve().name + ".ledger")


class Ledger:
    """One student's scores over some shards under one context. Blocks are read on demand; the last few are kept."""

    def __init__(self, folder: Path, shards: Shards, context: str, about: Mapping[str, Any]):
        self.folder, self.shards, self.context, self.about = folder, shards, context, about
        self.blocks = list(blocks(folder, shards, context))
        self._starts = np.array([block.first for block in self.blocks], np.int64)
        self._read = functools.lru_cache(8)(_read_block)
        self._columns: dict[tuple[int, str], tuple[np.ndarray, np.ndarray]] = {}

    @property
    def missing(self) -> int:
        """Traces that are not scored yet."""
        return sum(block.stop - block.first for block in self.blocks if not block.path.is_file())

    def __contains__(self, trace: int) -> bool:
        return self._block(trace).path.is_file()

    def fields(self, trace: int) -> dict[str, np.ndarray]:
        """Every field of a trace, an entry a scored token, floats as float32. Raises `UserError` where the trace is not
        scored, or a file that is damaged."""
        block = self._block(trace)
        if not block.path.is_file():
            raise UserError(
                f"trace {trace} of {self.shards.path} is not scored; `mixdistill score` adds what is missing"
            )
        offsets, arrays = self._read(block.path)
        span = slice(*offsets[trace - block.first : trace - block.first + 2])
        return {name: _wide(array[span]) for name, array in arrays.items() if not name.startswith(SUMMARY)}

    def field(self, trace: int, name: str) -> np.ndarray:
        """One field of a trace as it is stored. What was read stays in memory, for traces in any order. Raises
        `UserError` as `fields`, and for a field that is not there."""
        block = self._block(trace)
        if (block.first, name) not in self._columns:
            self.fields(trace)
            offsets, arrays = self._read(block.path)
            if name not in arrays:
                raise unknown(f"score in {self.folder} under {self.context!r}:", name, arrays)
            self._columns[block.first, name] = offsets, arrays[name]
        offsets, array = self._columns[block.first, name]
        return array[slice(*offsets[trace - block.first : trace - block.first + 2])]

    def summary(self) -> dict[str, np.ndarray]:
        """Every number that is kept of a trace as a whole, float32 `[traces]`; NaN where a trace is not scored."""
        columns: dict[str, np.ndarray] = {}
        for block in self.blocks:
            for name, column in self._read(block.path)[1].items() if block.path.is_file() else ():
                if name.startswith(SUMMARY):
                    whole = columns.setdefault(
                        name.removeprefix(SUMMARY), np.full(len(self.shards), np.nan, np.float32)
                    )
                    whole[block.first : block.stop] = column
        return columns

    def _block(self, trace: int) -> Block:
        if not 0 <= trace < len(self.shards):
            raise IndexError(f"trace {trace} of {len(self.shards)}")
        return self.blocks[int(np.searchsorted(self._starts, trace, side="right")) - 1]


def open_ledger(sidecar: Path | str, shards: Shards, *, student: str | None = None, context: str = "full") -> Ledger:
    """The ledger of `student` (fingerprint, or the start of it; None: the only one there) for `shards`.

    Raises `UserError` when there is none, when several students fit, or when nothing of these shards is in it.
    """
    found = {
        about["student"]: path.parent for path in sorted(Path(sidecar).glob(f"*/{ABOUT}")) if (about := _about(path))
    }
    fitting = [fingerprint for fingerprint in found if fingerprint.startswith(student or "")]
    if len(fitting) != 1:
        known = ", ".join(f"{name[:12]} ({_about(path / ABOUT)['name']})" for name, path in found.items()) or "none"
        problem = "no student is" if not fitting else "several students are"
        asked = f" that start with {student}" if student else ""
        raise UserError(f"{problem} in the ledger {sidecar}{asked}; known: {known}. Score first, or name one of them")
    folder = found[fitting[0]]
    ledger = Ledger(folder, shards, context, _about(folder / ABOUT))
    if len(shards) and ledger.missing == len(shards):
        raise UserError(
            f"the ledger {sidecar} holds no {context!r} scores of the traces in {shards.path}; "
            f"`mixdistill score {shards.path} --student ... --out {sidecar}` makes them"
        )
    return ledger


def _about(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable ({error}); remove its folder and score again") from None
    if about.get("schema") != SCHEMA_VERSION:
        raise UserError(f"{path} has schema {about.get('schema')!r}; this version reads {SCHEMA_VERSION}: score again")
    return about


def _read_block(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    try:
        # Opened here: numpy leaves a file that is no archive open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
        return arrays.pop("offsets"), arrays
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}); remove it and score again") from None


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float16 else array
