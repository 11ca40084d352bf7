"""What is known of a trace beside its record: scores of the ledger, and the tag that names its teacher."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mixdistill.data.fields import TOP_K_FIELDS, Batch
from mixdistill.data.ledger import SUMMARY, Ledger, default_sidecar, open_ledger
from mixdistill.data.mixture import Scores, Tags
from mixdistill.errors import UserError, unknown
from mixdistill.traces.shards import Shards

TOP_K = {  # batch field -> score
    "teacher_topk_ids": "topk_id",
    "teacher_topk_logprob": "topk_logprob",
    "teacher_tail_logprob": "topk_tail_logprob",
}


class Column(NamedTuple):
    """A batch field of one shard folder: an entry a token of the ledger, or a number a trace."""

    name: str
    ledger: Ledger | None
    of_trace: np.ndarray | None

    def values(self, trace: int) -> np.ndarray:
        """Of the completion's tokens, `[n]` or `[n, K]`; or a single number."""
        if self.of_trace is not None:
            return self.of_trace[trace]
        assert self.ledger is not None
        return self.ledger.field(trace, self.name)


def open_fields(shards: Shards, wanted: Mapping[str, Scores]) -> dict[str, Column]:
    """The columns by batch field. Raises `UserError` for a ledger or a score that is not there, for traces that are
    not scored yet, and for scores of another tokenizer."""
    columns = {}
    for name, scores in wanted.items():
        if scores.name != "topk":
            columns[name] = open_column(shards, scores)
            continue
        ledger = _open(shards, scores)
        columns |= {field: _column(ledger, entry) for field, entry in TOP_K.items()}
    return columns


def open_column(shards: Shards, scores: Scores) -> Column:
    """One of them."""
    if scores.name == "verdict":
        return Column(scores.name, None, _verdicts(shards))
    ledger = _open(shards, scores)
    if not scores.name.startswith(SUMMARY):
        return _column(ledger, scores.name)
    columns = ledger.summary()
    if (name := scores.name.removeprefix(SUMMARY)) not in columns:
        raise unknown(f"score in {ledger.folder} under {ledger.context!r}:", name, columns)
    return Column(name, None, columns[name])


def blank(columns: Mapping[str, Column], shape: tuple[int, int]) -> Batch:
    """These fields before anything is filled in: NaN, id 0."""
    batch = {}
    for name, column in columns.items():
        more = () if column.ledger is None else column.values(0).shape[1:]
        padding, dtype = (TOP_K_FIELDS[name][2], TOP_K_FIELDS[name][1]) if name in TOP_K else (np.nan, np.float32)
        batch[name] = np.full((*shape, *more), padding, dtype)
    return batch


class OpenTags(NamedTuple):
    """`Tags` in tokens."""

    ids: tuple[np.ndarray, ...]  # of each teacher, int32
    drop: float
    seed: int

    @property
    def largest(self) -> int:
        """Largest token id."""
        return max(int(ids.max()) for ids in self.ids)

    def of(self, teacher: int, *place: int) -> np.ndarray:
        """The tag of a trace at a place of the plan; empty where it is dropped."""
        if self.drop and np.random.default_rng((self.seed, *place)).random() < self.drop:
            return self.ids[teacher][:0]
        return self.ids[teacher]


def open_tags(tags: Tags, shards: Shards, teachers: tuple[str, ...], seed: int) -> OpenTags:
    """Raises `UserError` for a text that the tokenizer has no tokens for."""
    return OpenTags(tuple(tag_ids(tags.text, shards.tokenizer, teachers, name) for name in teachers), tags.drop, seed)


def tag_ids(text: str | None, tokenizer, teachers: tuple[str, ...], teacher: str) -> np.ndarray:
    """int32 [n]: what stands in front of a trace of this teacher, and of a prompt that is to be answered like one."""
    if text is None:
        return np.array([tokenizer.vocab_size + teachers.index(teacher)], np.int32)
    ids = tokenizer.encode(text.format(teacher=teacher))
    if not ids or tokenizer.unk_id in ids:
        raise UserError(f"the tokenizer has no tokens for the tag {text.format(teacher=teacher)!r}; use a learned tag")
    return np.array(ids, np.int32)


def _open(shards: Shards, scores: Scores) -> Ledger:
    sidecar = scores.sidecar or default_sidecar(shards)
    ledger = open_ledger(sidecar, shards, student=scores.student, context=scores.context)
    made, read = ledger.about["tokenizer"], shards.manifest["tokenizer"]
    if made != read:
        raise UserError(
            f"the scores in {ledger.folder} are of tokenizer {made[:12]}, shards {shards.path} of {read[:12]}; score "
            "these shards, or prepare them with that tokenizer"
        )
    if ledger.missing:
        raise UserError(
            f"{ledger.missing} traces of {shards.path} have no {scores.context!r} scores in {ledger.folder}; "
            "`mixdistill score` adds what is missing"
        )
    return ledger


def _column(ledger: Ledger, name: str) -> Column:
    column = Column(name, ledger, None)
    if len(ledger.shards):
        column.values(0)  # raises for a score that is not there
    return column


def _verdicts(shards: Shards) -> np.ndarray:
    said = np.array([{"correct": 1.0, "wrong": 0.0}.get(name, np.nan) for name in shards.verdicts], np.float32)
    return said[shards.index["verdict"]]
