"""Rows: the traces that a plan puts into one row, read and laid out as the fields of a batch."""

from collections.abc import Sequence

import numpy as np

from mixdistill.data.corpus import Corpus
from mixdistill.data.fields import FIELDS, Batch
from mixdistill.data.packing import Place


def read_rows(corpus: Corpus, content: np.ndarray, rows: Sequence[Sequence[Place]], length: int) -> Batch:
    """Every field of these rows, [R, T]; the places' own row numbers are not read. `content` is bool [V], see
    `tokenizer.content_ids`."""
    batch = {name: np.full((len(rows), length), field.padding, field.dtype) for name, field in FIELDS.items()}
    positions = np.arange(length)
    for number, places in enumerate(rows):
        for segment, place in enumerate(places, start=1):
            size = int(corpus.footprint[place.trace_id])
            columns = number, slice(place.offset, place.offset + size)
            batch["segment_id"][columns] = segment
            batch["position"][columns] = positions[:size]
            batch["teacher_id"][columns] = corpus.teacher[place.trace_id]
            batch["trace_id"][columns] = place.trace_id
            _fill(batch, columns, size, *corpus.locate(place.trace_id), corpus)
    batch["content"] = content[batch["target"]] & batch["valid"]
    return batch


def _fill(batch: Batch, columns: tuple[int, slice], size: int, folder: int, index: int, corpus: Corpus) -> None:
    """What stands in the record. Inputs leave out its last token, targets its first."""
    trace = corpus.shards[folder].arrays(index)
    batch["tokens"][columns] = trace.tokens[:size]
    batch["target"][columns] = trace.tokens[1 : size + 1]
    batch["valid"][columns][max(trace.num_prompt - 1, 0) :] = True
    batch["step_id"][columns] = trace.step_id[1 : size + 1]
    if trace.logprobs is not None:
        batch["teacher_logprob"][columns] = trace.logprobs[1 : size + 1]
