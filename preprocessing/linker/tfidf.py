"""Character 3-grams of many texts at once, as numbers, and how much each tells.

scispaCy's vectors are scikit-learn's `TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3))`: the 3-grams of each
lower-cased word with one space before and after it, weighted by how often the text has them and by a smoothed inverse
document frequency, scaled to length 1. Here a text stays a list of (3-gram, count), and the weights are applied where
a cosine is computed:

    cosine(Q, N) = sum over g of  count_Q(g) * count_N(g) * idf(g)^2   /   (|Q| * |N|)
    |N|^2        = sum over g of  count_N(g)^2 * idf(g)^2

The squares of the inverse document frequencies are rounded to multiples of 2^-24. All these sums are then exact in
float64, so a score has the same bits in whatever order, and on whatever machine, it is added up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

# Multiples of 2^-24 up to idf^2 = 2^9 leave 20 of float64's 53 bits to the counts that they are multiplied with.
_IDF_SQUARED_GRID = 2.0**24

# A character is below 2^21, so three of them make one code; sorted codes are 3-grams in alphabetical order.
_CHARACTER_BITS = 21
_SPACE = ord(" ")


class Vocabulary(NamedTuple):
    """The 3-grams that are known, numbered from the rarest to the most common.

    Attributes:
        code: [V] int64, their codes, ascending.
        number: [V] int32, the number of each of these.
        idf_squared: [V] float64, by number, so descending.
    """

    code: np.ndarray
    number: np.ndarray
    idf_squared: np.ndarray


class GramCounts(NamedTuple):
    """The known 3-grams of M texts, in all K different ones, as rows (CSR).

    Attributes:
        start: [M + 1] int64, where each text's entries begin.
        gram: [K] int64, their numbers, ascending within a text: the rarest come first.
        count: [K] int64, how often the text has each.
    """

    start: np.ndarray
    gram: np.ndarray
    count: np.ndarray


def link_key(mention: str) -> str:
    """The part of a mention that linking looks at: lower case, white space joined. Equal keys get equal concepts."""
    return " ".join(mention.lower().split())


def fit(batches: Iterable[Sequence[str]], min_df: int) -> Vocabulary:
    """Learn the vocabulary of texts.

    Args:
        batches: the N texts, as `link_key` returns them, in batches.
        min_df: drop 3-grams that fewer texts contain.

    Returns:
        The vocabulary; idf^2 is (ln((1 + N) / (1 + texts with the 3-gram)) + 1)^2 to the nearest 2^-24.
    """
    code, frequency, texts = np.empty(0, np.int64), np.empty(0, np.int64), 0
    for keys in batches:
        row, found = _grams(keys)
        batch_code, place = np.unique(found, return_inverse=True)
        _, place, _ = _distinct(row, place)
        batch_frequency = np.bincount(place, minlength=len(batch_code))
        code, place = np.unique(np.concatenate([code, batch_code]), return_inverse=True)
        summed = np.zeros(len(code), np.int64)
        np.add.at(summed, place, np.concatenate([frequency, batch_frequency]))
        frequency = summed
        texts += len(keys)
    kept = frequency >= min_df
    code, frequency = code[kept], frequency[kept]
    from_rarest = np.argsort(frequency, kind="stable")
    number = np.empty(len(code), np.int32)
    number[from_rarest] = np.arange(len(code))
    idf = np.log((1 + texts) / (1 + frequency[from_rarest])) + 1
    return Vocabulary(code, number, np.rint(idf**2 * _IDF_SQUARED_GRID) / _IDF_SQUARED_GRID)


def count_grams(keys: Sequence[str], vocabulary: Vocabulary) -> GramCounts:
    """Count the 3-grams of texts that a vocabulary knows; `keys` are M texts as `link_key` returns them."""
    row, code = _grams(keys)
    if len(vocabulary.code):
        place = np.minimum(np.searchsorted(vocabulary.code, code), len(vocabulary.code) - 1)
        known = vocabulary.code[place] == code
        row, gram, count = _distinct(row[known], vocabulary.number[place[known]])
    else:
        row = gram = count = np.empty(0, np.int64)
    return GramCounts(np.searchsorted(row, np.arange(len(keys) + 1)), gram, count)


def sum_rows(start: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sum of `values` [K] float64 over each row: [M]. Exact, because the values are multiples of 2^-24."""
    row = np.repeat(np.arange(len(start) - 1), np.diff(start))
    return np.bincount(row, weights=values, minlength=len(start) - 1)


def _grams(keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Every 3-gram of every text: the text's row and the 3-gram's code, both int64, one for each character of a word.

    With one space between the words of all texts, three neighbours are a 3-gram of a word, padded by a space on either
    side, exactly where the middle one is no space.
    """
    text = f" {' '.join(keys)} "
    characters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
    lengths = np.fromiter((len(key) + 1 for key in keys), np.int64, len(keys))
    middle = np.flatnonzero(characters[1:-1] != _SPACE) + 1
    code = characters[middle - 1]
    for offset in (0, 1):
        code = code << _CHARACTER_BITS | characters[middle + offset]
    row = np.repeat(np.arange(len(keys)), lengths)
    return row[middle - 1], code


def _distinct(row: np.ndarray, number: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different (row, number) in ascending order, and how often each stands there; numbers are below 2^31."""
    entry = np.sort(row << 31 | number)
    is_first = np.ones(len(entry), bool)
    is_first[1:] = entry[1:] != entry[:-1]
    first = np.flatnonzero(is_first)
    return entry[first] >> 31, entry[first] & (2**31 - 1), np.diff(first, append=len(entry))
