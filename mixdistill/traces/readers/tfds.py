"""Prepared TFDS datasets -> raw rows, without tensorflow: the records are read here, the features are TFDS's own."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import json_format, message

from mixdistill.traces.readers.row import BadRow, Damaged, Raw

FEATURES = "features.json"
BATCH_RECORDS = 256
MAX_RECORD_BYTES = 2**28
# What TFDS and protobuf raise for a description or an example that they do not understand.
UNREADABLE = (
    *(ImportError, LookupError, TypeError, ValueError, AttributeError, OSError, RuntimeError, ArithmeticError),
    *(json_format.Error, message.Error),
)


def read_tfds(folder: Path) -> Iterator[Raw | BadRow]:
    """The examples of all splits, in the order of their names and records; each has its split as field "split"."""
    number = 0
    try:
        info = _describe(folder)
        for split in sorted(info.splits):
            for record in _records(folder, info, split):
                number += 1
                yield _row(info.features, record, number, split, str(folder))
    except Damaged as damage:
        yield BadRow(str(folder), number and number + 1, str(damage))
    except UNREADABLE as error:
        yield BadRow(str(folder), number and number + 1, "damaged TFDS dataset", str(error)[:120])


def _describe(folder: Path) -> Any:
    """The dataset's DatasetInfo. A description may name any Python class to load; only TFDS's own are let through."""
    import tensorflow_datasets

    _check_classes(json.loads((folder / FEATURES).read_bytes()))
    return tensorflow_datasets.builder_from_directory(str(folder)).info


def _check_classes(value: Any) -> None:
    if isinstance(value, list):
        for one in value:
            _check_classes(one)
    elif isinstance(value, dict):
        name = value.get("pythonClassName", "tensorflow_datasets.")
        if not str(name).startswith("tensorflow_datasets."):
            raise Damaged("a TFDS dataset with features of its own code: not read")
        _check_classes(list(value.values()))


def _records(folder: Path, info: Any, split: str) -> Iterator[bytes]:
    kind = info.file_format.value
    if kind not in RECORDS:
        raise Damaged(f"a TFDS dataset in {kind} format; prepare it with file_format='array_record'")
    for name in info.splits[split].filenames:
        yield from RECORDS[kind](folder / name)


def _array_records(path: Path) -> Iterator[bytes]:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path))
    try:
        for start in range(0, reader.num_records(), BATCH_RECORDS):
            yield from reader.read(start, min(start + BATCH_RECORDS, reader.num_records()))
    finally:
        reader.close()


def _tf_records(path: Path) -> Iterator[bytes]:
    """TFRecord frames: length, its checksum, data, its checksum; TFDS's own default."""
    with path.open("rb") as file:
        while header := file.read(12):
            if len(header) < 12 or (size := struct.unpack("<Q4x", header)[0]) > MAX_RECORD_BYTES:
                raise Damaged("the TFRecord file is corrupt")
            record = file.read(size + 4)
            if len(record) < size + 4:
                raise Damaged("the TFRecord file is cut short")
            yield record[:size]


RECORDS = {"array_record": _array_records, "tfrecord": _tf_records}


def _row(features: Any, record: bytes, number: int, split: str, file: str) -> Raw | BadRow:
    try:
        row = _plain(features, features.deserialize_example_np(record))
    except UNREADABLE as error:
        return BadRow(file, number, "damaged TFDS example", str(error)[:120])
    return Raw(number, {"split": split} | row)


def _plain(feature: Any, value: Any) -> Any:
    """An example in Python's own types: text, numbers, lists; a sequence of objects as a list of objects."""
    from tensorflow_datasets import features as kinds

    if isinstance(feature, kinds.Dataset):
        return [_plain(feature.feature, one) for one in value]
    if isinstance(feature, kinds.FeaturesDict):
        return {name: _plain(feature[name], one) for name, one in value.items()}
    if isinstance(feature, kinds.Sequence) and isinstance(feature.feature, kinds.FeaturesDict):
        names = list(feature.feature)
        return [
            _plain(feature.feature, dict(zip(names, row, strict=True)))
            for row in zip(*(value[name] for name in names), strict=True)
        ]
    if isinstance(feature, kinds.ClassLabel) and feature.names and value >= 0:
        return feature.int2str(int(value))
    return _scalar(value)


def _scalar(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, list | tuple):
        return [_scalar(one) for one in value]
    if isinstance(value, np.ndarray | np.generic):
        return _scalar(value.tolist())
    return value
