"""Files -> bytes: plain, gzip or Zstandard (told by their first bytes), decompressed within limits."""

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from mixdistill.traces.readers.row import Damaged

CHUNK_BYTES = 2**18
# Repetitive JSON lines compress some 30-fold; deflate's limit, which only a bomb comes near, is 1032-fold.
MAX_RATIO = 300
RATIO_FREE_BYTES = 2**26  # below this any ratio is harmless
# One Zstandard block may hold 128 KiB in 4 bytes: small bites keep what one call returns under 32 MiB.
ZSTD_BITE_BYTES = 2**10
GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def open_stream(path: Path) -> io.BufferedReader:
    """The decompressed bytes of `path`. Reading raises `Damaged` when the file is cut, corrupt or a bomb."""
    file: io.BufferedReader = io.BufferedReader(path.open("rb", 0), CHUNK_BYTES)
    magic = file.read(4)
    file.seek(0)
    if magic.startswith(GZIP_MAGIC):
        return _reader(_gzip_chunks(file), file)
    if magic == ZSTD_MAGIC:
        return _reader(_zstd_chunks(file), file)
    return file


def _reader(chunks: Iterator[bytes], file: BinaryIO) -> io.BufferedReader:
    return io.BufferedReader(_Chunks(_bounded(chunks, file), file), CHUNK_BYTES)


def _gzip_chunks(file: BinaryIO) -> Iterator[bytes]:
    try:
        with gzip.GzipFile(fileobj=file) as unpacked:
            # read1 hands over what is there before it meets a damage.
            while chunk := unpacked.read1(CHUNK_BYTES):
                yield chunk
    except EOFError:
        raise Damaged("the gzip file is cut short") from None
    except (gzip.BadGzipFile, zlib.error):
        raise Damaged("the gzip file is corrupt") from None


def _zstd_chunks(file: BinaryIO) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=2**27)
    frame = None
    try:
        while bite := file.read(ZSTD_BITE_BYTES):
            while bite:
                frame = frame or decompressor.decompressobj()
                yield frame.decompress(bite)
                bite = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    except zstandard.ZstdError:
        raise Damaged("the Zstandard file is corrupt") from None
    if frame is not None:
        raise Damaged("the Zstandard file is cut short")


def _bounded(chunks: Iterator[bytes], file: BinaryIO) -> Iterator[bytes]:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > RATIO_FREE_BYTES and size > MAX_RATIO * file.tell():
            raise Damaged(f"compressed more than {MAX_RATIO}-fold: not read on")
        yield chunk


class _Chunks(io.RawIOBase):
    """A raw stream over chunks of bytes."""

    def __init__(self, chunks: Iterator[bytes], file: BinaryIO):
        self._chunks, self._file, self._rest = chunks, file, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()
