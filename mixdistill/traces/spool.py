"""What an interrupted `prepare` has done, so that the same command goes on from there: results of jobs, in order.

.OUT.unfinished/ beside OUT: key (what was asked for), tokenizer/ (where one was trained), results (a frame a job:
checksum, length, and what `Encode` gave). A frame that is cut off or damaged ends what is believed.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

from mixdistill.errors import UserError
from mixdistill.traces.shard_index import Quarantined, Summary
from mixdistill.traces.tokenizer import Tokenizer

Result = tuple[bytes, Summary] | Quarantined
FRAME = struct.Struct("<II")  # crc32 and bytes of what follows


class Spool:
    """Context manager: results that are there already are read, new ones are added. Leaving it well, or by a
    `UserError`, removes it; an interruption leaves it."""

    def __init__(self, out: Path, key: dict[str, Any]):
        self.folder = out.with_name(f".{out.name}.unfinished")
        self._out, self._key = out, hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "lock").open("w")
        except OSError as error:
            raise UserError(f"cannot write to {self._out.parent}: {error.strerror}; choose another --out") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise UserError(f"another prepare is writing {self._out}; wait for it, or choose another --out") from None
        key = self.folder / "key"
        if not key.is_file() or key.read_text() != self._key:
            self._clear()
            key.write_text(self._key)
        for path in self._out.parent.glob(f".{self._out.name}.partial-*"):
            shutil.rmtree(path, ignore_errors=True)  # of a process that was killed: we hold the lock
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self._file is not None:
            self._file.close()
        if kind is None or issubclass(kind, UserError):
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()

    def tokenizer(self) -> Tokenizer | None:
        """The one that was trained before the interruption."""
        folder = self.folder / "tokenizer"
        return Tokenizer.load(folder) if folder.is_dir() else None

    def keep_tokenizer(self, tokenizer: Tokenizer) -> None:
        """All or nothing."""
        temporary = self.folder / "tokenizer.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        tokenizer.save(temporary)
        temporary.rename(self.folder / "tokenizer")

    def done(self) -> Iterator[list[Result]]:
        """The results of the jobs that were done, in order; afterwards `add` continues them."""
        path, end = self.folder / "results", 0
        path.touch()
        with path.open("rb") as file:
            while (results := _frame(file)) is not None:
                end = file.tell()
                yield results
        os.truncate(path, end)
        self._file = path.open("ab")

    def add(self, results: Sequence[Result]) -> None:
        """The results of the next job."""
        assert self._file is not None
        payload = _pack(results)
        self._file.write(FRAME.pack(zlib.crc32(payload), len(payload)) + payload)
        self._file.flush()

    def _clear(self) -> None:
        for path in self.folder.iterdir():
            if path.name != "lock":
                with contextlib.suppress(OSError):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _frame(file: BinaryIO) -> list[Result] | None:
    head = file.read(FRAME.size)
    if len(head) < FRAME.size:
        return None
    checksum, size = FRAME.unpack(head)
    payload = file.read(size)
    if len(payload) < size or zlib.crc32(payload) != checksum:
        return None
    try:
        return _unpack(payload)
    except (struct.error, ValueError, TypeError):  # zeros have the checksum of nothing
        return None


def _pack(results: Sequence[Result]) -> bytes:
    """JSON of what is text, its length, and the records."""
    texts = [[None, *one] if isinstance(one, Quarantined) else [len(one[0]), *one[1]] for one in results]
    head = json.dumps(texts).encode()
    return b"".join(
        [struct.pack("<I", len(head)), head, *(one[0] for one in results if not isinstance(one, Quarantined))]
    )


def _unpack(payload: bytes) -> list[Result]:
    (size,) = struct.unpack_from("<I", payload)
    place, results = 4 + size, []
    for length, *values in json.loads(payload[4:place]):
        if length is None:
            results.append(Quarantined(*values))
        else:
            results.append((payload[place : place + length], Summary(*values)))
            place += length
    return results
