"""Character n-grams: how far apart two teachers' ways of writing are, down to punctuation and markup."""

import numpy as np

BINS = 2**15  # hashed; far more than the trigrams that make up the mass of any alphabet's text
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, from the golden ratio: multiplicative hashing


def character_ngrams(text: str, n: int = 3, bins: int = BINS) -> np.ndarray:
    """int64 [bins]: counts of the byte n-grams of `text` (UTF-8), hashed; zeros for a text of fewer than n bytes."""
    data = np.frombuffer(text.encode("utf-8", "replace"), np.uint8)
    if len(data) < n:
        return np.zeros(bins, np.int64)
    code = np.zeros(len(data) - n + 1, np.uint64)
    for k in range(n):
        code = (code << np.uint64(8)) | data[k : len(code) + k]
    shift = np.uint64(64 - int(bins).bit_length() + 1)
    return np.bincount(((code * _FACTOR) >> shift).astype(np.int64), minlength=bins)
