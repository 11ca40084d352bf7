"""Corpus: the traces of a mixture as columns of numbers. All that planning needs; no trace is read."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mixdistill.data.beside import Column, OpenTags, open_column, open_fields, open_tags
from mixdistill.data.damage import Damage
from mixdistill.data.mixture import Mixture, Scores, Select, Within
from mixdistill.errors import UserError, unknown
from mixdistill.traces.shards import Shards


class Corpus(NamedTuple):
    """Traces of several shard folders under one numbering: trace i of the second folder is `len(first) + i`."""

    shards: tuple[Shards, ...]
    starts: np.ndarray  # int64 [F + 1]: first trace_id of each folder, and the end
    teachers: tuple[str, ...]  # position = teacher_id; alphabetical
    teacher: np.ndarray  # int32 [N]
    footprint: np.ndarray  # int32 [N]: columns that a trace fills, one less than its tokens; at most the row length
    trained: np.ndarray  # int32 [N]: targets that are trained on
    cost: np.ndarray  # float64 [N]: what a trace counts for in the mixture's unit
    pools: tuple[np.ndarray, ...]  # for each teacher, the trace_ids that may be drawn
    counts: dict[str, dict[str, int]]  # {teacher: {"eligible", "dropped", "truncated"}}
    fields: tuple[Mapping[str, Column], ...] = ()  # further batch fields, of each folder
    tags: OpenTags | None = None
    damage: Damage = Damage("strict")

    def locate(self, trace_id: int) -> tuple[int, int]:
        """(folder, index in it)."""
        folder = int(np.searchsorted(self.starts, trace_id, side="right")) - 1
        return folder, trace_id - int(self.starts[folder])


def open_corpus(mixture: Mixture) -> Corpus:
    """Opens the shards. Raises `UserError` for unknown teachers, folds or verdicts, teachers without a trace, traces
    that are too long (by policy), shards of different tokenizers, and scores that are not there."""
    verify = "full" if mixture.damaged == "strict" else "fast"
    shards = tuple(Shards.open(folder, verify) for folder in mixture.folders)
    for other in shards[1:]:
        if other.manifest["tokenizer"] != shards[0].manifest["tokenizer"]:
            first, second = (s.manifest["tokenizer"][:12] for s in (shards[0], other))
            raise UserError(
                f"shards {shards[0].path} have tokenizer {first}, {other.path} have {second}; prepare them alike"
            )
    _check_once(shards)
    teachers = tuple(sorted({name for s in shards for name in s.teachers}))
    teacher = np.concatenate([_renumbered(s.index["teacher_id"], s.teachers, teachers) for s in shards])
    num_tokens, num_prompt = (np.concatenate([s.index[name] for s in shards]) for name in ("num_tokens", "num_prompt"))
    tags = open_tags(mixture.tags, shards[0], teachers, mixture.seed) if mixture.tags else None
    if tags is not None:
        added = np.array([len(ids) for ids in tags.ids])[teacher]
        num_tokens, num_prompt = num_tokens + added, num_prompt + added
    wanted = np.concatenate([_wanted(s, mixture) for s in shards]) & _chosen(mixture, teachers, teacher)
    if mixture.within is not None:
        wanted &= _within(mixture.within, shards, wanted)
    if mixture.select is not None:
        wanted &= _selected(mixture.select, shards, wanted)
    trained = np.minimum(num_tokens, mixture.length + 1) - np.maximum(num_prompt, 1)
    long = wanted & (num_tokens - 1 > mixture.length)
    _check_long(mixture, shards, long, num_tokens)
    useless = wanted & (trained <= 0)  # the row ends inside the prompt
    eligible = wanted & ~useless if mixture.too_long == "truncate" else wanted & ~useless & ~long
    pools = tuple(np.flatnonzero(eligible & (teacher == k)) for k in range(len(teachers)))
    counts = {
        name: {
            "eligible": len(pools[k]),
            "dropped": int((wanted & ~eligible & (teacher == k)).sum()),
            "truncated": int((eligible & long & (teacher == k)).sum()),
        }
        for k, name in enumerate(teachers)
    }
    return Corpus(
        shards,
        np.concatenate([[0], np.cumsum([len(s) for s in shards])]),
        teachers,
        teacher,
        np.minimum(num_tokens - 1, mixture.length).astype(np.int32),
        trained.astype(np.int32),
        trained.astype(np.float64) if mixture.unit == "tokens" else np.ones(len(teacher)),
        pools,
        counts,
        tuple(open_fields(s, mixture.fields) for s in shards) if mixture.fields else (),
        tags,
        Damage(mixture.damaged, sum(map(len, pools))),
    )


def _check_once(shards: tuple[Shards, ...]) -> None:
    """Raises `UserError` for record files that stand in two folders, under whatever names."""
    seen: dict[str, str] = {}
    for one in shards:
        for name in one.manifest["shards"]:
            checksum, here = one.manifest["files"][name]["sha256"], str(one.path / name)
            if checksum in seen:
                raise UserError(
                    f"{here} holds the same records as {seen[checksum]}; list each folder once, and raise a teacher's "
                    "share with weights"
                )
            seen[checksum] = here


def weight_vector(corpus: Corpus, mixture: Mixture) -> np.ndarray:
    """float64 [K]: the shares the mixture starts with, summing to one."""
    stock = np.array([corpus.cost[pool].sum() for pool in corpus.pools])
    if mixture.weights is None:
        if not stock.sum():
            raise UserError(
                f"no trace is left to train on: rows of {mixture.length} tokens, folds {mixture.folds}, verdicts "
                f"{mixture.verdicts}; counts by teacher: {corpus.counts}"
            )
        return stock / stock.sum()
    return named_weights(corpus, mixture.weights)


def named_weights(corpus: Corpus, weights) -> np.ndarray:
    """float64 [K] summing to one, from names; teachers that are not named get nothing."""
    vector = np.zeros(len(corpus.teachers))
    for name, weight in weights.items():
        if name not in corpus.teachers:
            raise unknown("teacher", name, corpus.teachers)
        vector[corpus.teachers.index(name)] = weight
        if weight > 0 and not corpus.counts[name]["eligible"]:
            raise UserError(f"teacher {name!r} has weight {weight} but no trace to train on ({corpus.counts[name]})")
    return vector / vector.sum()


def _renumbered(ids: np.ndarray, names: tuple[str, ...], united: tuple[str, ...]) -> np.ndarray:
    return np.array([united.index(name) for name in names], np.int32)[ids]


def _wanted(shards: Shards, mixture: Mixture) -> np.ndarray:
    """bool [n]: traces of the wanted folds and verdicts."""
    keep = np.ones(len(shards), bool)
    for column, chosen, known in (
        ("fold", mixture.folds, shards.folds),
        ("verdict", mixture.verdicts, shards.verdicts),
    ):
        if chosen is None:
            continue
        for name in chosen:
            if name not in known:
                raise unknown(f"{column} of {shards.path}:", name, known)
        keep &= np.isin(shards.index[column], [known.index(name) for name in chosen])
    return keep


def _scores(by: Scores, shards: tuple[Shards, ...], wanted: np.ndarray) -> np.ndarray:
    """float32 [N]: a number a trace; NaN where it has none or is not wanted."""
    columns = [open_column(s, by).of_trace for s in shards]
    if any(column is None for column in columns):
        raise UserError(f"traces are chosen by a number a trace, such as 'summary/surprisal', not {by.name!r}")
    return np.where(wanted, np.concatenate([column for column in columns if column is not None]), np.nan)


def _within(within: Within, shards: tuple[Shards, ...], wanted: np.ndarray) -> np.ndarray:
    """bool [N]: the traces between the quantiles."""
    score = _scores(within.by, shards, wanted)
    order = np.argsort(score, kind="stable")[: int((~np.isnan(score)).sum())]
    first, last = (round(share * len(order)) for share in (within.low, within.high))
    chosen = np.zeros(len(score), bool)
    chosen[order[first:last]] = True
    return chosen


def _selected(select: Select, shards: tuple[Shards, ...], wanted: np.ndarray) -> np.ndarray:
    """bool [N]: the one trace of each problem, of those that are wanted."""
    score = _scores(select.by, shards, wanted) * (-1 if select.keep == "highest" else 1)
    problem = problem_numbers(shards)
    order = np.lexsort((score, problem))  # stable, NaN last
    first = np.concatenate([[True], np.diff(problem[order]) > 0]) if len(order) else np.zeros(0, bool)
    chosen = np.zeros(len(score), bool)
    chosen[order[first]] = True
    return chosen & ~np.isnan(score)


def _chosen(mixture: Mixture, teachers: tuple[str, ...], teacher: np.ndarray) -> np.ndarray:
    if mixture.teachers is None:
        return np.ones(len(teacher), bool)
    for name in mixture.teachers:
        if name not in teachers:
            raise unknown("teacher", name, teachers)
    return np.isin(teacher, [teachers.index(name) for name in mixture.teachers])


def _check_long(mixture: Mixture, shards, long: np.ndarray, num_tokens: np.ndarray) -> None:
    if mixture.too_long == "error" and long.any():
        worst = int(np.flatnonzero(long)[0])
        raise UserError(
            f"{int(long.sum())} traces do not fit in a row of {mixture.length} tokens (trace {worst} has "
            f"{int(num_tokens[worst])}); make length at least {int(num_tokens[long].max()) - 1}, or set too_long to "
            "'drop' or 'truncate'"
        )


def problem_numbers(shards: Sequence[Shards]) -> np.ndarray:
    """int [N]: a number for each trace, the same for traces of one problem whichever folder they are in."""
    names = [s.problems[number] for s in shards for number in s.index["problem"]]
    return np.unique(names, return_inverse=True)[1]
