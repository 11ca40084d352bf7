"""Rows: the traces that a plan puts into one row, read and laid out as the fields of a batch."""

from collections.abc import Sequence

import numpy as np

from mixdistill.data.corpus import Corpus
from mixdistill.data.fields import FIELDS, Batch
from mixdistill.data.packing import Place


def read_row(corpus: Corpus, content: np.ndarray, places: Sequence[Place], length: int) -> Batch:
    """Every field of one row, [T]. `content` is bool [V], see `tokenizer.content_ids`."""
    row = {name: np.full(length, field.padding, field.dtype) for name, field in FIELDS.items()}
    for segment, place in enumerate(places, start=1):
        size = int(corpus.footprint[place.trace_id])
        columns = slice(place.offset, place.offset + size)
        row["segment_id"][columns] = segment
        row["position"][columns] = np.arange(size)
        row["teacher_id"][columns] = corpus.teacher[place.trace_id]
        row["trace_id"][columns] = place.trace_id
        _fill(row, columns, size, *corpus.locate(place.trace_id), corpus)
    row["content"] = content[row["target"]] & row["valid"]
    return row


def _fill(row: Batch, columns: slice, size: int, folder: int, index: int, corpus: Corpus) -> None:
    """What stands in the record. Inputs leave out its last token, targets its first."""
    trace = corpus.shards[folder].arrays(index)
    row["tokens"][columns] = trace.tokens[:size]
    row["target"][columns] = trace.tokens[1 : size + 1]
    row["valid"][columns] = np.arange(1, size + 1) >= trace.num_prompt
    row["step_id"][columns] = trace.step_id[1 : size + 1]
    if trace.logprobs is not None:
        row["teacher_logprob"][columns] = trace.logprobs[1 : size + 1]
