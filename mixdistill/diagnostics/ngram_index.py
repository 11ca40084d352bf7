"""An index of all n-grams of the training traces, up to `DEPTH` tokens, that knows which teacher wrote each.

A suffix array over the concatenated traces, sorted by the first `DEPTH` tokens: 8 bytes a token on disk, 45 while it is
built. It is a folder of numpy files that are memory-mapped, so a query touches a few pages.
"""

import bisect
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mixdistill.errors import UserError
from mixdistill.traces.shards import Shards

DEPTH = 32  # tokens; a longer copied passage is found by its last 32
MAX_TOKENS = 20_000_000  # about a gigabyte while building; traces are sampled evenly beyond
_ARRAYS = ("tokens", "suffixes", "starts", "teacher")


class NgramIndex:
    """Counts n-grams in the traces of `num_teachers` teachers. `tokens` hold each trace, shifted by one, and a 0 at its
    end, so that no n-gram crosses from one trace into the next."""

    def __init__(self, teachers: Sequence[str], tokens, suffixes, starts, teacher):
        self.teachers = tuple(teachers)
        self.tokens, self.suffixes, self.starts, self.teacher = tokens, suffixes, starts, teacher
        self.totals = np.bincount(  # tokens of each teacher
            np.asarray(teacher), np.diff(np.append(starts, len(tokens))) - 1, minlength=len(self.teachers)
        ).astype(np.int64)

    @staticmethod
    def build(
        traces: Sequence[np.ndarray], teacher: Sequence[int] | np.ndarray, teachers: Sequence[str]
    ) -> "NgramIndex":
        """From the tokens of each trace (prompt and completion, as the student sees them) and its teacher's number."""
        lengths = np.array([len(trace) + 1 for trace in traces], np.int64)
        starts = np.cumsum(lengths) - lengths
        tokens = np.zeros(int(lengths.sum()), np.int32)
        for start, trace in zip(starts, traces, strict=True):
            tokens[start : start + len(trace)] = np.asarray(trace) + 1
        return NgramIndex(teachers, tokens, _sort_suffixes(tokens), starts, np.asarray(teacher, np.int32))

    def save(self, folder: Path | str) -> None:
        """Writes the folder. Raises `UserError` where it exists."""
        folder = Path(folder)
        if folder.exists():
            raise UserError(f"{folder} exists already; give a folder that does not")
        folder.mkdir(parents=True)
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)
        (folder / "teachers.json").write_text(json.dumps(self.teachers), encoding="utf-8")

    @staticmethod
    def load(folder: Path | str) -> "NgramIndex":
        """Maps the folder into memory. Raises `UserError` for one that is no index."""
        folder = Path(folder)
        try:
            teachers = json.loads((folder / "teachers.json").read_text(encoding="utf-8"))
            arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS}
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder} is no n-gram index ({error}); make one with index_shards(...).save(...)"
            ) from None
        return NgramIndex(teachers, **arrays)

    def count(self, ngram: Sequence[int]) -> int:
        """How often these 1 to `DEPTH` tokens follow one another in the traces."""
        first, last = self._range(tuple(ngram))
        return last - first

    def count_by_teacher(self, ngram: Sequence[int]) -> np.ndarray:
        """int64 [K]: `count` in the traces of each teacher."""
        return np.bincount(self.teacher[self._traces(tuple(ngram))], minlength=len(self.teachers))

    @functools.lru_cache(256)  # noqa: B019 - an index lives as long as the process that asks it
    def traces_with(self, token: int) -> np.ndarray:
        """bool [traces]: those that hold `token`."""
        found = np.zeros(len(self.starts), bool)
        found[self._traces((int(token),))] = True
        return found

    def longest_suffix(self, tokens: Sequence[int]) -> int:
        """Length of the longest ending of `tokens`, at most `DEPTH`, that the traces hold; 0 if not even the last."""
        tokens, length = tuple(tokens)[-DEPTH:], 0
        while length < len(tokens) and self.count(tokens[-length - 1 :]):
            length += 1
        return length

    def _traces(self, ngram: tuple[int, ...]) -> np.ndarray:
        first, last = self._range(ngram)
        return np.searchsorted(self.starts, self.suffixes[first:last], side="right") - 1

    def _range(self, ngram: tuple[int, ...]) -> tuple[int, int]:
        if not 1 <= len(ngram) <= DEPTH:
            raise ValueError(f"an n-gram of {len(ngram)} tokens; the index holds 1 to {DEPTH}")
        wanted = tuple(int(token) + 1 for token in ngram)

        def at(place: int) -> tuple[int, ...]:
            suffix = int(self.suffixes[place])
            return tuple(self.tokens[suffix : suffix + len(wanted)].tolist())

        places = range(len(self.suffixes))
        first = bisect.bisect_left(places, wanted, key=at)
        return first, bisect.bisect_right(places, wanted, lo=first, key=at)


def index_shards(shards: Shards, *, max_tokens: int = MAX_TOKENS, seed: int = 0) -> NgramIndex:
    """The index of `shards`; where they hold more than `max_tokens`, of an even random sample of their traces."""
    numbers = np.random.default_rng(seed).permutation(len(shards))
    within = np.cumsum(shards.index["num_tokens"][numbers].astype(np.int64)) <= max_tokens
    numbers = np.sort(numbers[within])
    traces = [shards.arrays(int(number)).tokens for number in numbers]
    return NgramIndex.build(traces, shards.index["teacher_id"][numbers], shards.teachers)


def _sort_suffixes(tokens: np.ndarray) -> np.ndarray:
    """Starts of all suffixes in the order of their first `DEPTH` tokens, by doubling: ranks by 1, 2, 4, ... tokens."""
    size = len(tokens)
    rank, order = tokens.astype(np.int64), np.zeros(size, np.int64)
    covered = 1
    while covered < DEPTH:
        following = np.zeros(size, np.int64)
        following[: max(size - covered, 0)] = rank[covered:] + 1
        key = rank * (max(int(rank.max(initial=0)), size) + 2) + following
        order = np.argsort(key)
        key = key[order]
        rank[order] = np.cumsum(np.concatenate([np.zeros(min(size, 1), bool), key[1:] != key[:-1]]))
        covered *= 2
    return order.astype(np.int32 if size < 2**31 else np.int64)
