"""The nearest name above a threshold, found exactly and without looking at most of the names.

Let Q be a mention and N a name (vectors of 3-grams, see `tfidf`), their 3-grams in order from the rarest, and their
cosine above t. Four bounds leave few names to compare in full:

1. Prefixes (as in all-pairs search: Bayardo et al., 2007). Cut each vector where the rest of it is shorter than t times
   the whole. Q and N share a 3-gram that lies before the cut in both: else all that they share lies in the rest of the
   one whose cut comes first, and their cosine is at most that rest's part of the whole. So a name is listed under
   its few rare 3-grams only, and only the lists of the mention's few rare 3-grams are read.
2. Windows. Most of either is in the other: with Q* the part of Q inside N, |Q*| > t |Q| and |N*| > t |N|. Let mass(X)
   be the squared length of X with all counts 1, and extra(X) = |X|^2 - mass(X). What they share has a mass of at least
   t^2 |Q|^2 - extra(Q) and at least t^2 |N|^2 - extra(N), and at most that of either. So
   mass(N) > t^2 |Q|^2 - extra(Q), and where extra(N) <= r mass(N), mass(N) (t^2 - (1 - t^2) r) < mass(Q).
   Names are numbered by block of alike r and by mass, and so is each list: only a window of it is read.
3. Signatures. A name has 128 bits; those of its 3-grams (number modulo 128) are set. The mention's 3-grams whose bit is
   not set are missing in the name. What is left of |Q|^2 without them must stay above t^2 |Q|^2. Signatures stand in
   the lists, so that reading a list reads memory in one direction.
4. Lengths. With u what is left, u (u + extra(N)) > (t |Q| |N|)^2: the cosine is at most |Q*| |N*| / (|Q| |N|), and
   |N*|^2 is at most the mass that they share plus extra(N).

The first good name raises t for the rest of the search, to its score.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np

from kebiolm.console import error_console
from preprocessing.linker.tfidf import GramCounts

# Scores are rounded to 6 decimals: what differs by less counts as equal.
SCORE_DECIMALS = 6
_SCORE_STEPS = 10**SCORE_DECIMALS

# Names are listed for cuts at two cosines, the thresholds of the paper and of scispaCy, less some room for rounding.
# A search above 0.85 reads the lists of the first cut only.
LOWEST_THRESHOLD = 0.7
LIST_FLOORS = np.array([0.85, LOWEST_THRESHOLD]) - 1e-5

SIGNATURE_BITS = 128
_WORD_BITS = 64

# Bounds are compared with this much room below the score to beat: half a step of rounding, and float64's own errors.
_ROOM = 1e-6

_WORTH_SAYING_S = 1.0


class IndexArrays(NamedTuple):
    """The arrays of an index, by the names of their files; see `build`."""

    idf_squared: np.ndarray
    block_start: np.ndarray
    block_repetition: np.ndarray
    lists_start: np.ndarray
    lists_name: np.ndarray
    lists_signature: np.ndarray
    name_mass: np.ndarray
    name_length: np.ndarray
    vectors_start: np.ndarray
    vectors_gram: np.ndarray
    vectors_count: np.ndarray
    name_start: np.ndarray
    name_concept: np.ndarray


class _Mention(NamedTuple):
    """A mention in the compiled code.

    Attributes:
        gram: [k] int64, its 3-grams from the rarest.
        square: [k] float64, count^2 * idf^2 of each.
        weight: [3-grams] float64, count * idf^2 of each; 0 for those that the mention does not have.
        length: square root of the sum of `square`.
        mass: sum of idf^2.
    """

    gram: np.ndarray
    square: np.ndarray
    weight: np.ndarray
    length: float
    mass: float


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile with Numba and keep the machine code beside the source, or else in the user's cache folder.

    Where neither can be written to, each process compiles for itself.
    """
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError:  # Numba found no folder to keep it in
        return numba.njit(function)


@compiled
def sketch_names(names: GramCounts, idf_squared: np.ndarray, signatures: np.ndarray, tiers: np.ndarray) -> None:
    """What the lists need to know of names: their signatures, and which of their 3-grams lie before which cut.

    Args:
        names: N names, K entries in all.
        idf_squared: [3-grams] float64.
        signatures: [N, 2] int64, zeros; gets the bits.
        tiers: [K] uint8, gets the place in `LIST_FLOORS` of the first cut that the entry lies before, else its length.
    """
    for name in range(len(names.start) - 1):
        rest = 0.0
        for entry in range(names.start[name], names.start[name + 1]):
            rest += float(names.count[entry]) ** 2 * idf_squared[names.gram[entry]]
        squared_length = rest
        for entry in range(names.start[name], names.start[name + 1]):
            bit = np.int64(names.gram[entry]) % SIGNATURE_BITS
            signatures[name, bit // _WORD_BITS] |= np.int64(1) << (bit % _WORD_BITS)
            tier = 0
            while tier < len(LIST_FLOORS) and rest < LIST_FLOORS[tier] ** 2 * squared_length:
                tier += 1
            tiers[entry] = tier
            rest -= float(names.count[entry]) ** 2 * idf_squared[names.gram[entry]]


@numba.njit
def _bisect(values: np.ndarray, start: int, stop: int, wanted: float) -> int:
    """First place in values[start:stop], ascending, that is not below `wanted`; `stop` if there is none."""
    while start < stop:
        middle = (start + stop) // 2
        if values[middle] < wanted:
            start = middle + 1
        else:
            stop = middle
    return start


@numba.njit
def _missing(mention: _Mention, low: int, high: int, allowed: float) -> float:
    """Bound 3: at least so much of |Q|^2 is missing in a name; counting ends when more is missing than allowed.

    `low` and `high` are the two words of the name's signature.
    """
    missing = 0.0
    for place in range(len(mention.gram)):
        bit = mention.gram[place] % SIGNATURE_BITS
        word = low if bit < _WORD_BITS else high
        if (word >> (bit % _WORD_BITS)) & 1 == 0:
            missing += mention.square[place]
            if missing > allowed:
                break
    return missing


@numba.njit
def _score(index: IndexArrays, mention: _Mention, name: int) -> int:
    """Their cosine in steps of 10^-6."""
    total = 0.0
    for entry in range(index.vectors_start[name], index.vectors_start[name + 1]):
        total += mention.weight[index.vectors_gram[entry]] * index.vectors_count[entry]
    return int(np.rint(total / (mention.length * index.name_length[name]) * _SCORE_STEPS))


@numba.njit
def _search_one(index: IndexArrays, mention: _Mention, threshold: float) -> tuple[int, int]:
    """The best concept of one mention and its score in steps; (-1, 0) if none is above the threshold."""
    best_score, best_concept = 0, -1
    floor = threshold - _ROOM
    last_tier = 0
    while floor < LIST_FLOORS[last_tier]:
        last_tier += 1
    squared_length = mention.length * mention.length
    rest = squared_length
    for place in range(len(mention.gram)):
        if rest < floor * floor * squared_length:  # bound 1, the mention's side
            break
        rest -= mention.square[place]
        for tier in range(last_tier + 1):  # bound 1, the names' side
            which = tier * len(index.idf_squared) + mention.gram[place]
            start, stop = index.lists_start[which], index.lists_start[which + 1]
            for block in range(len(index.block_repetition)):
                begin, end = index.block_start[block], index.block_start[block + 1]
                if begin == end or start == stop:
                    continue
                square = floor * floor
                factor = square - (1 - square) * index.block_repetition[block]
                lowest = square * squared_length - (squared_length - mention.mass)
                first = _bisect(index.name_mass, begin, end, lowest)  # bound 2
                last = _bisect(index.name_mass, first, end, mention.mass / factor) if factor > 0 else end
                for entry in range(_bisect(index.lists_name, start, stop, first), stop):
                    name = index.lists_name[entry]
                    if name >= last:
                        break
                    allowed = (1 - floor * floor) * squared_length
                    low, high = index.lists_signature[entry, 0], index.lists_signature[entry, 1]
                    missing = _missing(mention, low, high, allowed)
                    if missing > allowed:
                        continue
                    left, length = squared_length - missing, index.name_length[name]
                    extra = length * length - index.name_mass[name]
                    if left * (left + extra) < (floor * mention.length * length) ** 2:  # bound 4
                        continue
                    score = _score(index, mention, name)
                    if score < best_score or score / _SCORE_STEPS <= threshold:
                        continue
                    concept = index.name_concept[index.name_start[name]]
                    if score > best_score or concept < best_concept:
                        best_score, best_concept = score, concept
                        floor = max(floor, score / _SCORE_STEPS - _ROOM)
    return best_concept, best_score


@compiled
def search(
    index: IndexArrays, mentions: GramCounts, threshold: float, concepts: np.ndarray, scores: np.ndarray
) -> None:
    """Find for each mention the best concept strictly above the threshold; of equal scores the first concept wins.

    Args:
        index: the names.
        mentions: M mentions.
        threshold: in [0.7, 1].
        concepts: [M] int32, gets the number of the concept, -1 where there is none.
        scores: [M] float64, gets its score, rounded to 6 decimals, 0 where there is none.
    """
    weight = np.zeros(len(index.idf_squared))
    for row in range(len(mentions.start) - 1):
        first, last = mentions.start[row], mentions.start[row + 1]
        square, squared_length, mass = np.empty(last - first), 0.0, 0.0
        for place in range(last - first):
            gram, count = mentions.gram[first + place], mentions.count[first + place]
            idf_squared = index.idf_squared[gram]
            weight[gram] = count * idf_squared
            square[place] = count * count * idf_squared
            squared_length += square[place]
            mass += idf_squared
        mention = _Mention(mentions.gram[first:last], square, weight, math.sqrt(squared_length), mass)
        concept, score = _search_one(index, mention, threshold)
        concepts[row] = concept
        scores[row] = min(score / _SCORE_STEPS, 1.0)
        for place in range(first, last):
            weight[mentions.gram[place]] = 0.0


def prepare(index: IndexArrays) -> None:
    """Compile the search for these arrays, or read it from the cache; says so where it had to compile for seconds."""
    started = time.monotonic()
    nothing = np.zeros(0, np.int64)
    search(index, GramCounts(np.zeros(1, np.int64), nothing, nothing), 1.0, np.empty(0, np.int32), np.empty(0))
    seconds = time.monotonic() - started
    if seconds > _WORTH_SAYING_S and not search.stats.cache_hits:
        cache = search.stats.cache_path
        kept = f"later processes read it from {cache}" if cache else "found no folder to keep it in for later ones"
        error_console.print(f"Compiled the name search in {seconds:.1f} s; {kept}")
