"""Equal and nearly equal traces, and evaluation problems that training has seen. Memory and time grow with the text,
never with the number of pairs: min-hash signatures (Broder 1997) meet in bands."""

import re
from collections.abc import Iterable, Sequence

import numpy as np

SHINGLE = 5  # tokens
HASHES = 64  # the estimate of a Jaccard similarity of 0.8 is then within 0.1 in 19 of 20 cases
BAND = 4  # signature values: two traces of similarity s meet in one of 16 bands with probability 1 - (1 - s^4)^16
NEAR = 0.8
OVERLAP_WORDS = 8
_WORD = re.compile(r"\w+")


def signature(tokens: np.ndarray) -> np.ndarray:
    """uint32 [HASHES]: min-hashes of the set of `SHINGLE`-grams of tokens; one gram where there are fewer tokens."""
    shingles = _shingles(np.asarray(tokens))
    mixed = shingles[None, :] * _MULTIPLIERS[:, None] + _OFFSETS[:, None]
    return (mixed >> np.uint64(32)).min(axis=1).astype(np.uint32)


def near_duplicates(signatures: np.ndarray, near: float = NEAR) -> np.ndarray:
    """int64 [P, 2]: pairs i < j of rows `[N, HASHES]` that agree in at least the share `near`; of a crowd of alike rows
    every one is paired with the first, not with all others."""
    found = []
    for start in range(0, signatures.shape[1], BAND):
        band = np.ascontiguousarray(signatures[:, start : start + BAND])
        _, first, group = np.unique(
            band.view(f"V{band.itemsize * BAND}").ravel(), return_index=True, return_inverse=True
        )
        other = np.flatnonzero(first[group] != np.arange(len(group)))
        found.append(np.stack([first[group[other]], other], axis=1))
    pairs = np.unique(np.concatenate([*found, np.zeros((0, 2), np.int64)]), axis=0)
    agreement = np.concatenate(
        [(signatures[part[:, 0]] == signatures[part[:, 1]]).mean(axis=1) for part in _blocks(pairs)] or [np.zeros(0)]
    )
    return pairs[agreement >= near]


def duplicate_table(pairs: np.ndarray, teacher: np.ndarray, num_teachers: int) -> np.ndarray:
    """int64 [K, K]: traces of teacher a (row) that have a near duplicate by teacher b; the diagonal is within a."""
    table = np.zeros((num_teachers, num_teachers), np.int64)
    both = np.concatenate([pairs, pairs[:, ::-1]])
    trace_and_other = np.unique(np.stack([both[:, 0], teacher[both[:, 1]]], axis=1), axis=0)
    np.add.at(table, (teacher[trace_and_other[:, 0]], trace_and_other[:, 1]), 1)
    return table


def seen_share(evaluation: Sequence[str], training: Iterable[str], words: int = OVERLAP_WORDS) -> np.ndarray:
    """float64 [len(evaluation)]: share of each evaluation problem's word n-grams that any training prompt has, whatever
    the case and punctuation. A problem of fewer words counts as one n-gram; one without words is NaN."""
    wanted = [_word_ngrams(text, words) for text in evaluation]
    everything = set().union(*wanted)
    shortest = {gram.count(" ") + 1 for gram in everything}
    seen = set()
    for text in training:
        for size in shortest:
            seen |= everything & _word_ngrams(text, size, whole=False)
    return np.array([len(grams & seen) / len(grams) if grams else np.nan for grams in wanted])


def _word_ngrams(text: str, size: int, whole: bool = True) -> set[str]:
    found = _WORD.findall(text.casefold())
    if len(found) < size:
        return {" ".join(found)} if found and whole else set()
    return {" ".join(found[i : i + size]) for i in range(len(found) - size + 1)}


def _shingles(tokens: np.ndarray) -> np.ndarray:
    tokens = tokens.astype(np.uint64) + np.uint64(1)
    size = min(SHINGLE, len(tokens))
    code = np.zeros(max(len(tokens) - size + 1, 1), np.uint64)
    for k in range(size):
        code = (code + tokens[k : len(code) + k]) * np.uint64(0x9E3779B97F4A7C15)
        code ^= code >> np.uint64(29)
    return code


def _blocks(pairs: np.ndarray, size: int = 2**16) -> list[np.ndarray]:
    return [pairs[start : start + size] for start in range(0, len(pairs), size)]


_RANDOM = np.random.default_rng(0)
_MULTIPLIERS = _RANDOM.integers(0, 2**63, HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_OFFSETS = _RANDOM.integers(0, 2**63, HASHES, dtype=np.uint64)
