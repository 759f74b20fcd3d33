"""Which concept does a mention name? scispaCy's TF-IDF over character 3-grams and cosine, searched exactly.

scispaCy (Neumann et al., 2019) turns every name of the knowledge base into a TF-IDF vector of character 3-grams,
finds the names nearest to a mention by cosine, and scores a concept by its best name. Its search is approximate and
two builds of its graph disagree; here the cosine to every name that shares a 3-gram is computed with a sparse product,
so the best name is always found and the same mention always gets the same answer.

An index is a folder of plain arrays (never a pickle), built once from sorted names, hashed, and memory-mapped by every
process that links:

    vocabulary.json                          the 3-grams, sorted; a 3-gram's number is its place in this list
    idf.npy                                  [3-grams] float32
    postings_{start,name,weight}.npy         for each 3-gram the names that contain it and its weight there (CSR)
    name_{start,concept}.npy                 for each name the concepts that carry it (CSR)
    names.arrow, concepts.arrow              the names and the CUIs, both sorted
    manifest.json                            settings, counts, hashes
"""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import sparse

from kebiolm.errors import UserError
from kebiolm.files import (
    atomic_folder,
    describe_file,
    has_format,
    read_manifest,
    sha256_of_json,
    verify_file,
    write_json,
)

FORMAT, VERSION = "kebiolm-link-index", 1

# scispaCy drops 3-grams that occur in fewer than 10 names, a setting made for the millions of names of UMLS. In a small
# knowledge base most 3-grams of a rare name are that rare: there nothing is dropped.
SCISPACY_MIN_DF = 10
SMALL_KB_NAMES = 10_000

# The product of a batch of mentions with the names holds at most this many (mention, name) pairs: 8 bytes each.
MAX_PAIRS_IN_MEMORY = 16_000_000

# Scores that differ by less are rounding errors of float32: they count as equal, so that a tie is a tie on any machine.
SCORE_DECIMALS = 6

_MEND = "run `kebiolm kb build` again"


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A concept that a mention may name.

    Attributes:
        cui: the concept.
        name: its name nearest to the mention (the first in sorted order, where several are equally near).
        score: cosine of mention and name, in (0, 1], rounded to 6 decimals.
    """

    cui: str
    name: str
    score: float


def link_key(mention: str) -> str:
    """The part of a mention that linking looks at: lower case, white space joined. Equal keys get equal candidates."""
    return " ".join(mention.lower().split())


def build_link_index(
    names: Sequence[str], cuis: Sequence[str], out: Path, *, min_df: int | None = None
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
    if not names or len(names) != len(cuis):
        raise ValueError(f"got {len(names)} names and {len(cuis)} CUIs; expected as many of each, and at least one")
    pairs = sorted(set(zip(names, cuis, strict=True)))
    distinct_names = sorted({name for name, _ in pairs})
    concepts = sorted({cui for _, cui in pairs})
    if min_df is None:
        min_df = SCISPACY_MIN_DF if len(distinct_names) >= SMALL_KB_NAMES else 1

    vocabulary, idf = _fit(distinct_names, min_df)
    postings = _vectors(distinct_names, {gram: number for number, gram in enumerate(vocabulary)}, idf).T.tocsr()
    number_of = {cui: number for number, cui in enumerate(concepts)}
    per_name = Counter(name for name, _ in pairs)
    vectorless = len(distinct_names) - len(np.unique(postings.indices))

    with atomic_folder(out, overwrite=True, is_ours=lambda folder: has_format(folder, FORMAT)) as folder:
        (folder / "vocabulary.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        np.save(folder / "idf.npy", idf)
        np.save(folder / "postings_start.npy", postings.indptr)
        np.save(folder / "postings_name.npy", postings.indices)
        np.save(folder / "postings_weight.npy", postings.data)
        np.save(folder / "name_start.npy", np.cumsum([0, *(per_name[name] for name in distinct_names)], dtype=np.int64))
        np.save(folder / "name_concept.npy", np.array([number_of[cui] for _, cui in pairs], dtype=np.int32))
        _write_strings(folder / "names.arrow", distinct_names)
        _write_strings(folder / "concepts.arrow", concepts)
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "settings": {"analyzer": "char_wb", "lowercase": True, "ngram": 3, "min_df": min_df, "norm": "l2"},
            "counts": {
                "names": len(distinct_names),
                "concepts": len(concepts),
                "name_concept_pairs": len(pairs),
                "vocabulary": len(vocabulary),
                "postings": int(postings.nnz),
                "names_without_vector": vectorless,
            },
            "files": {file.name: describe_file(file) for file in sorted(folder.iterdir())},
        }
        write_json(folder / "manifest.json", manifest)
    return manifest


class LinkIndex:
    """An index that `build_link_index` wrote, ready to link; its arrays are memory-mapped, so processes share them."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest
        vocabulary = json.loads((path / "vocabulary.json").read_text(encoding="utf-8"))
        self._number_of_gram = {gram: number for number, gram in enumerate(vocabulary)}
        self._idf = np.load(path / "idf.npy")
        self._names, self._concepts = _read_strings(path / "names.arrow"), _read_strings(path / "concepts.arrow")
        self._postings_start, postings_name, weight = (
            np.load(path / f"postings_{part}.npy", mmap_mode="r") for part in ("start", "name", "weight")
        )
        shape = (len(vocabulary), len(self._names))
        self._postings = sparse.csr_matrix((weight, postings_name, self._postings_start), shape=shape, copy=False)
        self._name_start = np.load(path / "name_start.npy", mmap_mode="r")
        self._name_concept = np.load(path / "name_concept.npy", mmap_mode="r")
        self._vectorless = self._find_vectorless_names(postings_name)

    @classmethod
    def load(cls, path: Path, *, check_hash: bool = True) -> LinkIndex:
        """Open an index after checking every file against the manifest.

        Raises:
            UserError: a file is missing, cut short, or differs from what was built.
        """
        manifest = read_manifest(path, FORMAT, VERSION, made_by="kebiolm kb build")
        for name, recorded in manifest["files"].items():
            verify_file(path, name, recorded, mend=_MEND, check_hash=check_hash)
        return cls(path, manifest)

    @property
    def fingerprint(self) -> str:
        """SHA-256 that changes when any byte of the index or a setting changes."""
        return sha256_of_json(self.manifest)

    def link(self, mentions: Sequence[str], *, top: int = 1) -> list[tuple[Candidate, ...]]:
        """Find the concepts nearest to each mention.

        A concept's score is that of its nearest name. A mention of which no 3-gram is known has no candidates, except
        where it equals a name that has no vector either (score 1): an equal name is never missed.

        Args:
            mentions: M texts, of any case and spacing.
            top: how many concepts to return for each at most.

        Returns:
            For each mention its candidates, sorted by (score descending, CUI); empty where none shares a 3-gram.
        """
        vectors = _vectors(mentions, self._number_of_gram, self._idf)
        results: list[tuple[Candidate, ...]] = []
        for start, stop in self._batches(vectors):
            similarities = vectors[start:stop] @ self._postings
            for row, mention in enumerate(mentions[start:stop]):
                entries = slice(similarities.indptr[row], similarities.indptr[row + 1])
                names, scores = similarities.indices[entries], similarities.data[entries]
                if len(names) == 0:
                    names = np.array(self._vectorless.get(link_key(mention), []), dtype=np.int64)
                    scores = np.ones(len(names), dtype=np.float32)
                results.append(self._best_concepts(names, scores, top))
        return results

    def _batches(self, vectors: sparse.csr_matrix) -> Iterator[tuple[int, int]]:
        """Cut the mentions into runs whose products with all names stay below the memory bound."""
        names_per_gram = np.diff(self._postings_start)
        bound = np.minimum(vectors.astype(bool).astype(np.int64) @ names_per_gram, len(self._names))
        start, pairs = 0, 0
        for row, count in enumerate(bound.tolist()):
            if pairs + count > MAX_PAIRS_IN_MEMORY and row > start:
                yield start, row
                start, pairs = row, 0
            pairs += count
        if start < vectors.shape[0]:
            yield start, vectors.shape[0]

    def _best_concepts(self, names: np.ndarray, scores: np.ndarray, top: int) -> tuple[Candidate, ...]:
        """The `top` concepts of names [K] with scores [K], which are in no particular order."""
        scores = np.minimum(np.round(scores.astype(np.float64), SCORE_DECIMALS), 1.0)
        wanted = top
        while True:
            # Names equally near as the last one wanted belong to the choice too: one of them may have the first CUI.
            enough = wanted >= len(scores)
            chosen = slice(None) if enough else scores >= np.partition(scores, -wanted)[-wanted]
            best = self._score_concepts(names[chosen], scores[chosen])
            if enough or len(best) >= top:
                break
            wanted *= 4  # several of the names belong to one concept: look further
        ranked = sorted(best.items(), key=lambda item: (-item[1][0], item[0]))[:top]
        return tuple(
            Candidate(cui=self._concepts[concept].as_py(), name=self._names[name].as_py(), score=score)
            for concept, (score, name) in ranked
        )

    def _score_concepts(self, names: np.ndarray, scores: np.ndarray) -> dict[int, tuple[float, int]]:
        """For each concept that carries one of the names: its best score, and the first name that reaches it."""
        best: dict[int, tuple[float, int]] = {}
        for place in np.lexsort((names, -scores)).tolist():
            name = int(names[place])
            for concept in self._name_concept[self._name_start[name] : self._name_start[name + 1]].tolist():
                best.setdefault(concept, (float(scores[place]), name))
        return best

    def _find_vectorless_names(self, postings_name: np.ndarray) -> dict[str, list[int]]:
        """Names of which every 3-gram is rare, by their key: equality is the only way to find them."""
        has_vector = np.zeros(len(self._names), dtype=bool)
        has_vector[postings_name] = True
        found: dict[str, list[int]] = {}
        for name in np.flatnonzero(~has_vector).tolist():
            found.setdefault(link_key(self._names[name].as_py()), []).append(name)
        return found


def trigrams(text: str) -> Iterator[str]:
    """The character 3-grams of each lower-cased word with one space before and after it (scikit-learn's "char_wb")."""
    for word in text.lower().split():
        padded = f" {word} "
        for start in range(len(padded) - 2):
            yield padded[start : start + 3]


def _fit(names: Sequence[str], min_df: int) -> tuple[list[str], np.ndarray]:
    """The sorted 3-grams that at least `min_df` of the names contain, and their smoothed inverse document frequency."""
    document_frequency: Counter[str] = Counter()
    for name in names:
        document_frequency.update(set(trigrams(name)))
    vocabulary = sorted(gram for gram, count in document_frequency.items() if count >= min_df)
    idf = [math.log((1 + len(names)) / (1 + document_frequency[gram])) + 1 for gram in vocabulary]
    return vocabulary, np.array(idf, dtype=np.float32)


def _vectors(texts: Sequence[str], number_of_gram: dict[str, int], idf: np.ndarray) -> sparse.csr_matrix:
    """TF-IDF rows [len(texts), 3-grams] float32 of length 1; a text with no known 3-gram is a row of zeros."""
    starts, columns, counts = array("q", [0]), array("i"), array("f")
    for text in texts:
        grams = Counter(number for gram in trigrams(text) if (number := number_of_gram.get(gram)) is not None)
        # Sorted columns fix the order of every later sum, and with it its last bit.
        for number in sorted(grams):
            columns.append(number)
            counts.append(grams[number])
        starts.append(len(columns))
    start, column = np.asarray(starts, dtype=np.int64), np.asarray(columns, dtype=np.int32)
    weights = np.asarray(counts, dtype=np.float32) * idf[column]
    rows = sparse.csr_matrix((weights, column, start), shape=(len(texts), len(idf)))
    norms = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1), dtype=np.float64)).ravel()
    rows.data /= np.repeat(np.where(norms > 0, norms, 1), np.diff(rows.indptr)).astype(np.float32)
    return rows


def _write_strings(path: Path, values: list[str]) -> None:
    table = pa.table({"value": pa.array(values, type=pa.large_string())})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


def _read_strings(path: Path) -> pa.Array:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except pa.ArrowInvalid as error:
        raise UserError(path, got=f"an unreadable file ({error})", expected="an Arrow file", mend=_MEND) from None
    return table.column("value").combine_chunks()
