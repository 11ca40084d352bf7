"""Rows: the traces that a plan puts into one row, read and laid out as the fields of a batch."""

from collections.abc import Sequence

import numpy as np

from mixdistill.data.beside import blank
from mixdistill.data.corpus import Corpus
from mixdistill.data.fields import FIELDS, Batch
from mixdistill.data.packing import Place

NO_TAG = np.zeros(0, np.int32)


def read_rows(corpus: Corpus, content: np.ndarray, rows: Sequence[Sequence[Place]], length: int) -> Batch:
    """Every field of these rows, [R, T], and those that the mixture adds. A place's own row number does no more than
    decide on its tag. `content` is bool [V], see `tokenizer.content_ids`. A trace that cannot be read leaves its
    place empty, or raises `UserError`, as the mixture says."""
    batch = {name: np.full((len(rows), length), field.padding, field.dtype) for name, field in FIELDS.items()}
    for columns in corpus.fields[:1]:
        batch |= blank(columns, (len(rows), length))
    nothing = {name: np.copy(array[0, 0]) for name, array in batch.items()}
    positions = np.arange(length)
    for number, places in enumerate(rows):
        for segment, place in enumerate(places, start=1):
            size, teacher, tag = int(corpus.footprint[place.trace_id]), int(corpus.teacher[place.trace_id]), NO_TAG
            if corpus.tags is not None:  # a trace whose tag is dropped leaves the tag's columns empty
                tag = corpus.tags.of(teacher, *place)
                size -= len(corpus.tags.ids[teacher]) - len(tag)
            columns = number, slice(place.offset, place.offset + size)
            batch["segment_id"][columns] = segment
            batch["position"][columns] = positions[:size]
            batch["teacher_id"][columns] = teacher
            batch["trace_id"][columns] = place.trace_id
            folder, index = corpus.locate(place.trace_id)
            try:
                _fill(batch, columns, size, tag, folder, index, corpus)
                corpus.damage.well()
            except Exception as error:  # noqa: BLE001 - whatever broken bytes raise, in a library or by their shape
                corpus.damage.meet(place.trace_id, corpus.shards[folder].path, index, error)
                for name, empty in nothing.items():
                    batch[name][columns] = empty
    batch["content"] = content[batch["target"]] & batch["valid"]
    return batch


def _fill(
    batch: Batch, columns: tuple[int, slice], size: int, tag: np.ndarray, folder: int, index: int, corpus: Corpus
) -> None:
    """The tag, and what stands in the record and beside it. Inputs leave out the last token, targets the first."""
    trace = corpus.shards[folder].arrays(index)
    if len(trace.tokens) != corpus.shards[folder].index["num_tokens"][index]:
        raise ValueError(f"it has {len(trace.tokens)} tokens, and another number in the index")
    if trace.tokens.min() < 0 or trace.tokens.max() >= corpus.shards[folder].manifest["vocab_size"]:
        raise ValueError("it has tokens that its tokenizer does not know")
    tokens = np.concatenate([tag, trace.tokens])
    start = max(len(tag) + trace.num_prompt - 1, 0)  # column of the first target that is trained on
    own = columns[0], slice(columns[1].start + len(tag), columns[1].stop)  # without the tag
    batch["tokens"][columns] = tokens[:size]
    batch["target"][columns] = tokens[1 : size + 1]
    batch["valid"][columns][start:] = True
    batch["step_id"][own] = trace.step_id[1 : size + 1 - len(tag)]
    if trace.logprobs is not None:
        batch["teacher_logprob"][own] = trace.logprobs[1 : size + 1 - len(tag)]
    for name, column in corpus.fields[folder].items() if corpus.fields else ():
        values = column.values(index)
        if values.ndim:  # of the completion's tokens; the record may be cut off before their end
            values = values[len(values) - (len(tokens) - 1 - start) :][: size - start]
        batch[name][columns][start:] = values
