"""Shards: a folder of encoded traces with random access.

    traces-00000.array_record ...   the records (`record.py`), group size 1: one trace is read without its neighbours
    index.npz                       lengths, teacher, verdict, problem, fold of every trace: all that planning needs
    tokenizer.json                  the tokenizer that made the tokens (tokenizer_config.json: its end token, template)
    quarantine.jsonl                what was left out, with file, line and reason
    manifest.json                   schema version, counts by teacher, and a checksum of every other file

Trace i is the i-th record over the files in order. Teachers and problems are numbered in alphabetical order.
"""

import functools
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mixdistill.errors import UserError
from mixdistill.traces import manifest as manifests
from mixdistill.traces import record as records
from mixdistill.traces.record import EncodedTrace
from mixdistill.traces.shard_index import INDEX, Quarantined
from mixdistill.traces.shard_writer import ShardWriter
from mixdistill.traces.templates import PLAIN, ChatTemplate
from mixdistill.traces.tokenizer import Tokenizer


def write_shards(
    encoded: Iterable[EncodedTrace],
    out: Path | str,
    *,
    tokenizer: Tokenizer,
    quarantine: Iterable[Quarantined] = (),
    overwrite: bool = False,
) -> "Shards":
    """Writes `out` in one piece: all of it appears at the end, or nothing. Raises `UserError` when `out` exists."""
    with ShardWriter(Path(out), tokenizer=tokenizer, overwrite=overwrite) as writer:
        for trace in encoded:
            writer.add(trace)
        for row in quarantine:
            writer.quarantine(row)
    return Shards.open(out)


class Shards:
    """Read-only random access to a folder of shards; safe to share between threads and to send to processes."""

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path, self.manifest = path, manifest
        self.teachers: tuple[str, ...] = tuple(manifest["teachers"])  # position = teacher_id
        self.folds: tuple[str, ...] = tuple(manifest["folds"])  # position = index["fold"]
        self.verdicts: tuple[str, ...] = tuple(manifest["verdicts"])  # position = index["verdict"]

    @staticmethod
    def open(path: Path | str, verify: manifests.Verify = "fast", *, tokenizer_hash: str | None = None) -> "Shards":
        """Opens `path` and compares its files with the manifest: sizes ("fast"), checksums ("full"), or not ("none").

        Raises `UserError` for a missing folder, a missing or changed file, another schema version, and, where
        `tokenizer_hash` is given, for shards made with another tokenizer.
        """
        path = Path(path)
        manifest = manifests.read(path)
        manifests.verify(path, manifest, verify)
        if tokenizer_hash is not None and tokenizer_hash != manifest["tokenizer"]:
            raise UserError(
                f"shards {path} were made with tokenizer {manifest['tokenizer'][:12]}, not with {tokenizer_hash[:12]}; "
                "prepare them again with --tokenizer, or train with their own"
            )
        return Shards(path, manifest)

    def __len__(self) -> int:
        return self.manifest["num_traces"]

    def __getitem__(self, index: int) -> EncodedTrace:
        """Trace `index`, with its text. Raises `IndexError` outside 0..len-1, `UserError` for damaged bytes."""
        return records.from_bytes(self._record(index))

    def arrays(self, index: int) -> records.Arrays:
        """Trace `index` without its text: several times faster than `[index]`."""
        return records.arrays(self._record(index))

    def whole(self, index: int) -> bool:
        """Whether trace `index` can be read."""
        try:
            self[index]
        except Exception:  # noqa: BLE001 - whatever broken bytes raise in a library
            return False
        return True

    @functools.cached_property
    def index(self) -> dict[str, np.ndarray]:
        """One entry a trace: int32 num_tokens, num_prompt, num_steps, teacher_id, problem; int8 verdict, fold."""
        return {name: array for name, array in self._npz().items() if name != "problems"}

    @functools.cached_property
    def problems(self) -> list[str]:
        """Problem ids, alphabetical; `index["problem"]` points here."""
        return json.loads(self._npz()["problems"].tobytes())

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the tokens."""
        return Tokenizer.load(self.path)

    @property
    def template(self) -> ChatTemplate:
        """What stands around the prompts: `encode_prompt(shards.tokenizer, prompt, shards.template)` continues them."""
        return ChatTemplate(**self.manifest["template"]) if "template" in self.manifest else PLAIN

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 over the checksums of all files: the identity of the data, wherever it lies."""
        return manifests.fingerprint(self.manifest)

    @functools.cached_property
    def _records(self):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        # "file[0:n]" tells the source the counts, so it opens a file only when something is read from it.
        return ArrayRecordDataSource([f"{self.path / name}[0:{n}]" for name, n in self.manifest["shards"].items()])

    def _record(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(f"trace {index} of {len(self)}")
        return self._records[index]

    def _npz(self) -> dict[str, np.ndarray]:
        with np.load(self.path / INDEX, allow_pickle=False) as file:
            return dict(file)

    def __getstate__(self) -> dict[str, Any]:
        # Only the path and the manifest travel: another process opens its own files.
        return {"path": self.path, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def __repr__(self) -> str:
        return f"Shards({str(self.path)!r}: {len(self)} traces, {len(self.teachers)} teachers)"


def quarantined(path: Path | str) -> list[dict[str, Any]]:
    """The rows of quarantine.jsonl: file, line, reason, teacher, excerpt."""
    with (Path(path) / "quarantine.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in itertools.takewhile(str.strip, file)]
