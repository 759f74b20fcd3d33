"""The names of a knowledge base -> a folder of plain arrays (never a pickle) that `LinkIndex` maps into memory.

    vocabulary_{code,number}.npy       [3-grams] the known 3-grams, and their numbers from the rarest; see `tfidf`
    idf_squared.npy                    [3-grams] float64, by number
    vectors_{start,gram,count}.npy     for each name its 3-grams from the rarest, and how often it has them (CSR)
    name_{mass,length}.npy             [names] float64, see `search`
    block_{start,repetition}.npy       blocks of names with alike repetition, see `_number_names`
    lists_{start,name,signature}.npy   for each cut and 3-gram the names listed there, see `search`
    name_{start,concept}.npy           for each name the concepts that carry it (CSR), ascending
    names.arrow, concepts.arrow        the names by number; the CUIs, sorted
    manifest.json                      settings, counts, hashes

Texts stay in Arrow but for one batch at a time, so that the three million names of UMLS need little memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from kebiolm.console import progress
from kebiolm.files import atomic_folder, describe_file, has_format, write_json
from preprocessing.linker import tfidf
from preprocessing.linker.search import LIST_FLOORS, SIGNATURE_BITS, sketch_names

FORMAT, VERSION = "kebiolm-link-index", 2

# scispaCy drops 3-grams that occur in fewer than 10 names, a setting made for the millions of names of UMLS. In a small
# knowledge base most 3-grams of a rare name are that rare: there nothing is dropped.
SCISPACY_MIN_DF = 10
SMALL_KB_NAMES = 10_000

NAMES_AT_ONCE = 50_000

VOCABULARY_FILES = {
    "code": "vocabulary_code.npy",
    "number": "vocabulary_number.npy",
    "idf_squared": "idf_squared.npy",
}

# Blocks of names by how much of their vector comes from repeated 3-grams; the last takes all that repeat more.
_REPETITION_LIMITS = np.array([0.0, 0.1, 0.5])


class _Names(NamedTuple):
    """Distinct names in alphabetical order.

    Attributes:
        name: [N] large_string.
        concept_start: [N + 1] int64, where each name's concepts begin.
        concept: [pairs] int32, the concepts that carry it, ascending; a concept's number is its place in `concepts`.
        concepts: the CUIs, sorted.
    """

    name: pa.LargeStringArray
    concept_start: np.ndarray
    concept: np.ndarray
    concepts: pa.LargeStringArray


class _Vectors(NamedTuple):
    """The names' vectors.

    Attributes:
        counts: [N, 3-grams] how often each name has each 3-gram.
        squared_length: [N] sum of count^2 * idf^2.
        mass: [N] sum of idf^2, as if each 3-gram stood there once.
    """

    counts: sparse.csr_matrix
    squared_length: np.ndarray
    mass: np.ndarray


def build_link_index(
    names: Sequence[str] | pa.Array | pa.ChunkedArray,
    cuis: Sequence[str] | pa.Array | pa.ChunkedArray,
    out: Path,
    *,
    min_df: int | None = None,
) -> dict[str, Any]:
    """Build the index of a knowledge base's names and write it to a new folder.

    Args:
        names: [P] names; a name may stand there several times, with different concepts.
        cuis: [P] the concept of each.
        out: folder to write; a former index is replaced.
        min_df: drop 3-grams that fewer distinct names contain; None chooses scispaCy's 10, or 1 (drop nothing) below
            10,000 names.

    Returns:
        The manifest. Its counts tell how many names have no 3-gram left; those are found by equality only.

    Raises:
        ValueError: no names, or `names` and `cuis` differ in length.
    """
    if not len(names) or len(names) != len(cuis):
        raise ValueError(f"got {len(names)} names and {len(cuis)} CUIs; expected as many of each, and at least one")
    table = _distinct_names(large_strings(names), large_strings(cuis))
    if min_df is None:
        min_df = SCISPACY_MIN_DF if len(table.name) >= SMALL_KB_NAMES else 1
    with progress("Indexing names, 1 of 2: counting 3-grams", len(table.name), "names") as advance:
        vocabulary = tfidf.fit(_batches_of_keys(table.name, advance), min_df)
    with progress("Indexing names, 2 of 2: vectors", len(table.name), "names") as advance:
        vectors = _make_vectors(_batches_of_keys(table.name, advance), vocabulary)
    order, block_start, block_repetition = _number_names(vectors)

    with (
        atomic_folder(out, overwrite=True, is_ours=lambda folder: has_format(folder, FORMAT)) as folder,
        progress("Writing the index", None, "files") as advance,
    ):
        for name, values in vocabulary._asdict().items():
            np.save(folder / VOCABULARY_FILES[name], values)
        np.save(folder / "block_start.npy", block_start)
        np.save(folder / "block_repetition.npy", block_repetition)
        np.save(folder / "name_mass.npy", vectors.mass[order])
        np.save(folder / "name_length.npy", np.sqrt(vectors.squared_length[order]))
        _write_names(folder, table, order)
        counts = vectors.counts[order]
        _write_vectors(folder, counts)
        _write_lists(folder, counts, vocabulary.idf_squared)
        files = {}
        for file in sorted(folder.iterdir()):
            files[file.name] = describe_file(file)
            advance()
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "settings": {"analyzer": "char_wb", "lowercase": True, "ngram": 3, "min_df": min_df, "norm": "l2"},
            "counts": {
                "names": len(table.name),
                "concepts": len(table.concepts),
                "name_concept_pairs": len(table.concept),
                "vocabulary": len(vocabulary.code),
                "vector_entries": int(counts.nnz),
                "names_without_vector": int(np.count_nonzero(vectors.mass == 0)),
            },
            "files": files,
        }
        write_json(folder / "manifest.json", manifest)
    return manifest


def _distinct_names(names: pa.ChunkedArray, cuis: pa.ChunkedArray) -> _Names:
    """Sort the names, and number the concepts; Arrow sorts UTF-8 bytes, which is the order of Python's strings."""
    pairs = pa.table({"name": names, "cui": cuis}).group_by(["name", "cui"], use_threads=False).aggregate([])
    pairs = pairs.sort_by([("name", "ascending"), ("cui", "ascending")])
    name, cui = pairs["name"].combine_chunks(), pairs["cui"].combine_chunks()
    concepts = pc.unique(cui).sort()
    first = np.concatenate([[0], np.flatnonzero(pc.not_equal(name[1:], name[:-1]).to_numpy(zero_copy_only=False)) + 1])
    return _Names(
        name=name.take(pa.array(first)),
        concept_start=np.concatenate([first, [len(name)]]),
        concept=pc.index_in(cui, value_set=concepts).to_numpy(),
        concepts=concepts,
    )


def _batches_of_keys(names: pa.LargeStringArray, advance: Callable[[int], None]) -> Iterator[list[str]]:
    for start in range(0, len(names), NAMES_AT_ONCE):
        keys = [tfidf.link_key(name) for name in names.slice(start, NAMES_AT_ONCE).to_pylist()]
        yield keys
        advance(len(keys))


def _make_vectors(batches: Iterator[list[str]], vocabulary: tfidf.Vocabulary) -> _Vectors:
    grams, counts, per_name, squared_lengths, masses = [], [], [], [], []
    for keys in batches:
        rows = tfidf.count_grams(keys, vocabulary)
        weights = vocabulary.idf_squared[rows.gram]
        squared_lengths.append(tfidf.sum_rows(rows.start, rows.count**2 * weights))
        masses.append(tfidf.sum_rows(rows.start, weights))
        per_name.append(np.diff(rows.start))
        grams.append(rows.gram.astype(np.int32))
        counts.append(rows.count.astype(np.min_scalar_type(rows.count.max(initial=0))))
    start = np.cumsum(np.concatenate([[0], *per_name]))
    shape = (len(start) - 1, len(vocabulary.code))
    matrix = sparse.csr_matrix((np.concatenate(counts), np.concatenate(grams), start), shape=shape)
    return _Vectors(matrix, np.concatenate(squared_lengths), np.concatenate(masses))


def _number_names(vectors: _Vectors) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose an order in which the names that can be near to a mention stand close together.

    A name is near to a mention only if most of the one is in the other, so their masses must be alike; how much alike
    depends on how often the name repeats its 3-grams (see `search`). Names are numbered by block of repetition, then
    by mass, then by alphabet; the names without a vector come first.

    Returns:
        order: [N] int64, the places (by alphabet) of the names in their new order.
        block_start: [blocks + 1] int64, where each block begins.
        block_repetition: [blocks] float64, the highest (squared length - mass) / mass in each.
    """
    repetition = (vectors.squared_length - vectors.mass) / np.where(vectors.mass > 0, vectors.mass, 1)
    block = np.searchsorted(_REPETITION_LIMITS, repetition)
    order = np.lexsort((vectors.mass, block))
    block_start = np.searchsorted(block[order], np.arange(len(_REPETITION_LIMITS) + 2))
    highest = np.zeros(len(_REPETITION_LIMITS) + 1)
    np.maximum.at(highest, block, repetition)
    return order, block_start, highest


def _write_names(folder: Path, table: _Names, order: np.ndarray) -> None:
    """Write the names in their new order, and their concepts."""
    sizes = np.diff(table.concept_start)
    start = np.concatenate([[0], np.cumsum(sizes[order])])
    place = np.repeat(table.concept_start[:-1][order] - start[:-1], sizes[order]) + np.arange(len(table.concept))
    np.save(folder / "name_start.npy", start)
    np.save(folder / "name_concept.npy", table.concept[place])
    _write_strings(folder / "names.arrow", table.name.take(pa.array(order)))
    _write_strings(folder / "concepts.arrow", table.concepts)


def _write_vectors(folder: Path, counts: sparse.csr_matrix) -> None:
    """Write the vectors in the smallest integers that hold them."""
    np.save(folder / "vectors_start.npy", counts.indptr.astype(np.int64))
    np.save(folder / "vectors_gram.npy", counts.indices.astype(_gram_type(counts)))
    np.save(folder / "vectors_count.npy", counts.data)


def _write_lists(folder: Path, counts: sparse.csr_matrix, idf_squared: np.ndarray) -> None:
    """Write for each cut and 3-gram the names in which the 3-gram lies before this cut, but not before an earlier one.

    The list of cut c and 3-gram g is number c * V + g. Lists of later cuts stand behind all others, so that searches
    which do not read them do not bring them into memory.
    """
    starts, grams = counts.indptr.astype(np.int64), counts.indices.astype(_gram_type(counts))
    signatures = np.zeros((counts.shape[0], SIGNATURE_BITS // 64), np.int64)
    tiers = np.empty(len(grams), np.uint8)
    sketch_names(tfidf.GramCounts(starts, grams, counts.data), idf_squared, signatures, tiers)
    names, sizes = [], []
    for tier in range(len(LIST_FLOORS)):
        entry = np.flatnonzero(tiers == tier)
        # A stable sort keeps the names of a list in order; it is fast for 16-bit numbers.
        entry = entry[np.argsort(grams[entry], kind="stable")]
        names.append((np.searchsorted(starts, entry, side="right") - 1).astype(np.int32))
        sizes.append(np.bincount(grams[entry], minlength=counts.shape[1]))
    name = np.concatenate(names)
    np.save(folder / "lists_start.npy", np.cumsum(np.concatenate([[0], *sizes])))
    np.save(folder / "lists_name.npy", name)
    np.save(folder / "lists_signature.npy", signatures[name])


def _gram_type(counts: sparse.csr_matrix) -> type[np.unsignedinteger]:
    return np.uint16 if counts.shape[1] <= 1 << 16 else np.uint32


def _write_strings(path: Path, values: pa.LargeStringArray) -> None:
    table = pa.table({"value": values})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


def large_strings(values: Sequence[str] | pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts as one Arrow column; those that are in Arrow already do not become Python strings."""
    if isinstance(values, pa.ChunkedArray | pa.Array):
        return pa.chunked_array(values.cast(pa.large_string()))
    return pa.chunked_array([pa.array(values, type=pa.large_string())])
