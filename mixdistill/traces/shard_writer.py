"""Writing shards: records stream into a temporary folder, which becomes the real one when everything is in it."""

import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any, Self

from mixdistill.errors import UserError
from mixdistill.traces import manifest as manifests
from mixdistill.traces import record as records
from mixdistill.traces.record import EncodedTrace
from mixdistill.traces.shard_index import (
    INDEX,
    VERDICTS,
    Quarantined,
    Summary,
    counted,
    fold_names,
    summarise,
    teacher_table,
    write_index,
)
from mixdistill.traces.tokenizer import Tokenizer

QUARANTINE = "quarantine.jsonl"
SHARD_BYTES = 256 * 2**20  # before compression: big enough for object stores, small enough to copy and check one by one


class ShardWriter:
    """Context manager: `add` and `quarantine` what there is; leaving it well publishes `out`, an exception removes all.

    Raises `UserError` on construction when `out` exists (with `overwrite`: when it is something else than shards),
    and on leaving when no trace came.
    """

    def __init__(self, out: Path, *, tokenizer: Tokenizer, overwrite: bool = False, shard_bytes: int = SHARD_BYTES):
        check_out(out, overwrite)
        self.out, self._tokenizer, self._overwrite, self._shard_bytes = out, tokenizer, overwrite, shard_bytes
        self.extra: dict[str, Any] = {}  # goes into the manifest: how these shards were made
        self._summaries: list[Summary] = []
        self._quarantined: list[Quarantined] = []
        self._counts: dict[str, int] = {}  # file name -> records
        self._room = 0
        self._file: Any = None

    def __enter__(self) -> Self:
        self._folder = self.out.with_name(f".{self.out.name}.partial-{os.getpid()}")
        shutil.rmtree(self._folder, ignore_errors=True)
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self._folder.mkdir()
        except OSError as error:
            raise UserError(f"cannot write to {self.out.parent}: {error.strerror}; choose another --out") from None
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            self._close_file()
            if kind is None:
                self._finish()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, encoded: EncodedTrace) -> None:
        """Appends one trace."""
        self.add_record(records.to_bytes(encoded), summarise(encoded))

    def add_record(self, record: bytes, summary: Summary) -> None:
        """Appends one trace that another process has turned into bytes."""
        file = self._file if len(record) <= self._room else self._next_file()
        file.write(record)
        self._room -= len(record)
        self._counts[next(reversed(self._counts))] += 1
        self._summaries.append(summary)

    def quarantine(self, row: Quarantined) -> None:
        """Notes one row that was left out."""
        self._quarantined.append(row)

    def _next_file(self) -> Any:
        from array_record.python.array_record_module import ArrayRecordWriter

        self._close_file()
        name = f"traces-{len(self._counts):05d}.array_record"
        self._file = ArrayRecordWriter(str(self._folder / name), "group_size:1")
        self._counts[name], self._room = 0, self._shard_bytes
        return self._file

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _finish(self) -> None:
        if not self._summaries:
            raise UserError(f"no trace left to write to {self.out}{_why(self._quarantined)}")
        write_index(self._folder / INDEX, self._summaries)
        self._tokenizer.save(self._folder)
        with (self._folder / QUARANTINE).open("w", encoding="utf-8") as file:
            # Excerpts may hold broken Unicode: ASCII escapes keep it readable by anything.
            file.writelines(json.dumps(row._asdict()) + "\n" for row in self._quarantined)
        manifests.write(self._folder, self._manifest())
        _publish(self._folder, self.out, self._overwrite)

    def _manifest(self) -> dict[str, Any]:
        teachers = teacher_table(self._summaries, self._quarantined)
        lost = [row.teacher for row in self._quarantined]
        totals = ("num_tokens", "num_completion_tokens", "num_steps")
        return {
            "schema": manifests.SCHEMA_VERSION,
            "tokenizer": self._tokenizer.hash,
            "vocab_size": self._tokenizer.vocab_size,
            "num_traces": len(self._summaries),
            **{name: sum(row[name] for row in teachers.values()) for name in totals},
            "num_quarantined": len(self._quarantined),
            "quarantine_reasons": counted(row.reason for row in self._quarantined),
            "teachers_without_traces": counted(name for name in lost if name and name not in teachers),
            "teachers": teachers,
            "folds": fold_names(self._summaries),
            "verdicts": list(VERDICTS),
            **self.extra,
            "shards": self._counts,
            "files": manifests.checksums(self._folder),
        }


def check_out(out: Path, overwrite: bool) -> None:
    """Raises `UserError` unless shards may be written to `out`."""
    is_shards = (out / manifests.MANIFEST).is_file()
    if not out.exists() or (is_shards and overwrite) or (out.is_dir() and not any(out.iterdir())):
        return
    if is_shards:
        raise UserError(f"{out} holds shards already; --overwrite replaces them")
    raise UserError(f"{out} exists and holds no shards, so it is left alone; choose another --out")


def _why(quarantined: list[Quarantined]) -> str:
    if not quarantined:
        return ": the sources hold none"
    first, reasons = quarantined[0], counted(row.reason for row in quarantined)
    listed = "; ".join(f"{reason} ({n})" for reason, n in itertools.islice(reasons.items(), 3))
    return f": all {len(quarantined)} rows are bad: {listed}; first: {first.file}:{first.line} {first.excerpt}".strip()


def _publish(folder: Path, out: Path, overwrite: bool) -> None:
    if not (overwrite and out.exists()):
        folder.rename(out)  # fails, as it should, if somebody else made `out` meanwhile
        return
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    out.rename(old)
    folder.rename(out)
    shutil.rmtree(old)
