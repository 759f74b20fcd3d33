"""Which concept does a mention name? scispaCy's TF-IDF over character 3-grams and cosine, searched exactly.

scispaCy (Neumann et al., 2019) turns every name of the knowledge base into a TF-IDF vector of character 3-grams,
finds the names nearest to a mention by cosine, and scores a concept by its best name. Its search is approximate and
two builds of its graph disagree. Here the best name is always found and the same mention always gets the same answer.

There are two searches with equal answers: `link` multiplies with all names and ranks whatever shares a 3-gram;
`link_above` wants only the best concept above a threshold, which lets it skip nearly all names (see `search`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import sparse

from kebiolm.errors import UserError
from kebiolm.files import read_manifest, sha256_of_json, verify_file
from preprocessing.linker.build import FORMAT, VERSION, VOCABULARY_FILES
from preprocessing.linker.search import LOWEST_THRESHOLD, SCORE_DECIMALS, IndexArrays, prepare, search
from preprocessing.linker.tfidf import GramCounts, Vocabulary, count_grams, link_key, sum_rows

# The product of a batch of mentions with the names holds at most this many (mention, name) pairs: 12 bytes each.
MAX_PAIRS_IN_MEMORY = 16_000_000

_MENTIONS_AT_ONCE = 20_000
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


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkedConcepts:
    """The best concept of each of M mentions.

    Attributes:
        concept: [M] int32, places in the linker's `concepts`; -1 where no concept is above the threshold.
        score: [M] float32, in (0, 1], a number of 6 decimals; 0 where there is no concept.
    """

    concept: np.ndarray
    score: np.ndarray


class LinkIndex:
    """An index that `build_link_index` wrote, ready to link; its arrays are memory-mapped, so processes share them."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest
        self._vocabulary = Vocabulary(**{name: _map(path / file) for name, file in VOCABULARY_FILES.items()})
        self._arrays = IndexArrays(**{name: _map(path / f"{name}.npy") for name in IndexArrays._fields})
        self._names, self._concepts = _read_strings(path / "names.arrow"), _read_strings(path / "concepts.arrow")

    @classmethod
    def load(cls, path: Path, *, check_hash: bool = True) -> LinkIndex:
        """Open an index after checking every file against the manifest, and compile the search if need be.

        Args:
            path: the folder.
            check_hash: read all files for their SHA-256; otherwise only sizes are compared, which takes no time.

        Raises:
            UserError: a file is missing, cut short, or differs from what was built.
        """
        manifest = read_manifest(path, FORMAT, VERSION, made_by="kebiolm kb build")
        for name, recorded in manifest["files"].items():
            verify_file(path, name, recorded, mend=_MEND, check_hash=check_hash)
        index = cls(path, manifest)
        prepare(index._arrays)
        return index

    @property
    def fingerprint(self) -> str:
        """SHA-256 that changes when any byte of the index or a setting changes."""
        return sha256_of_json(self.manifest)

    @property
    def concepts(self) -> pa.LargeStringArray:
        """The CUIs, sorted; a concept's number is its place here."""
        return self._concepts

    def link_above(self, mentions: Sequence[str], threshold: float) -> LinkedConcepts:
        """Find the best concept of each mention: what `link(mentions, top=1)` finds, where its score is high enough.

        A threshold below 0.7 is allowed but slow: all names that share a 3-gram are looked at, as in `link`.

        Args:
            mentions: M texts, of any case and spacing.
            threshold: a concept's score must be strictly above this; in [0, 1].

        Raises:
            ValueError: the threshold is not in [0, 1].
        """
        if not 0 <= threshold <= 1:
            raise ValueError(f"got the threshold {threshold}; expected one in [0, 1]")
        concepts, scores = np.full(len(mentions), -1, np.int32), np.zeros(len(mentions))
        for start in range(0, len(mentions), _MENTIONS_AT_ONCE):
            batch = slice(start, start + _MENTIONS_AT_ONCE)
            self._link_batch_above(mentions[batch], threshold, concepts[batch], scores[batch])
        return LinkedConcepts(concept=concepts, score=scores.astype(np.float32))

    def link(self, mentions: Sequence[str], *, top: int = 1) -> list[tuple[Candidate, ...]]:
        """Find the concepts nearest to each mention, whatever their score.

        A concept's score is that of its nearest name. A mention of which no 3-gram is known has no candidates, except
        where it equals a name that has no vector either (score 1): an equal name is never missed.

        Args:
            mentions: M texts, of any case and spacing.
            top: how many concepts to return for each at most.

        Returns:
            For each mention its candidates, sorted by (score descending, CUI); empty where none shares a 3-gram.
        """
        return [
            tuple(
                Candidate(cui=self._concepts[concept].as_py(), name=self._names[name].as_py(), score=score)
                for concept, score, name in ranked
            )
            for ranked in self._rank(mentions, top)
        ]

    def _link_batch_above(
        self, mentions: Sequence[str], threshold: float, concepts: np.ndarray, scores: np.ndarray
    ) -> None:
        if threshold < LOWEST_THRESHOLD:
            for row, ranked in enumerate(self._rank(mentions, 1)):
                if ranked and ranked[0][1] > threshold:
                    concepts[row], scores[row], _ = ranked[0]
            return
        keys = [link_key(mention) for mention in mentions]
        grams = count_grams(keys, self._vocabulary)
        search(self._arrays, grams, threshold, concepts, scores)
        if threshold < 1:
            for row in np.flatnonzero(np.diff(grams.start) == 0).tolist():
                if names := self._vectorless.get(keys[row]):
                    concepts[row] = min(self._concepts_of(name)[0] for name in names)
                    scores[row] = 1.0

    def _rank(self, mentions: Sequence[str], top: int) -> Iterator[list[tuple[int, float, int]]]:
        """For each mention its `top` concepts: number, score, and number of the nearest name."""
        keys = [link_key(mention) for mention in mentions]
        grams = count_grams(keys, self._vocabulary)
        idf_squared = self._arrays.idf_squared[grams.gram]
        lengths = np.sqrt(sum_rows(grams.start, grams.count**2 * idf_squared))
        shape = (len(keys), len(self._arrays.idf_squared))
        weights = sparse.csr_matrix((grams.count * idf_squared, grams.gram, grams.start), shape=shape)
        for start, stop in self._batches(grams):
            products = weights[start:stop] @ self._postings
            for row in range(start, stop):
                entries = slice(*products.indptr[row - start : row - start + 2])
                names = products.indices[entries]
                if len(names):
                    cosines = products.data[entries] / (lengths[row] * self._arrays.name_length[names])
                    scores = np.minimum(np.round(cosines, SCORE_DECIMALS), 1.0)
                else:
                    names = np.array(self._vectorless.get(keys[row], []), dtype=np.int64)
                    scores = np.ones(len(names))
                yield self._best_concepts(names, scores, top)

    def _batches(self, grams: GramCounts) -> Iterator[tuple[int, int]]:
        """Cut the mentions into runs whose products with all names stay below the memory bound."""
        names_per_gram = np.diff(self._postings.indptr)
        bound = np.minimum(sum_rows(grams.start, names_per_gram[grams.gram]), len(self._names))
        start, pairs = 0, 0
        for row, count in enumerate(bound.tolist()):
            if pairs + count > MAX_PAIRS_IN_MEMORY and row > start:
                yield start, row
                start, pairs = row, 0
            pairs += count
        if start < len(bound):
            yield start, len(bound)

    def _best_concepts(self, names: np.ndarray, scores: np.ndarray, top: int) -> list[tuple[int, float, int]]:
        """The `top` concepts of names [K] with scores [K], which are in no particular order."""
        wanted = top
        while True:
            # Names equally near as the last one wanted belong to the choice too: one of them may have the first CUI.
            enough = wanted >= len(scores)
            chosen = slice(None) if enough else scores >= np.partition(scores, -wanted)[-wanted]
            best = self._score_concepts(names[chosen], scores[chosen])
            if enough or len(best) >= top:
                break
            wanted *= 4  # several of the names belong to one concept: look further
        ranked = sorted((-score, concept, name) for concept, (score, name) in best.items())
        return [(concept, -negative, name) for negative, concept, name in ranked[:top]]

    def _score_concepts(self, names: np.ndarray, scores: np.ndarray) -> dict[int, tuple[float, int]]:
        """For each concept that carries one of the names: its best score, and the first name that reaches it."""
        best: dict[int, tuple[float, int]] = {}
        texts = self._names.take(pa.array(names)).to_pylist()
        for score, _, name in sorted(zip((-scores).tolist(), texts, names.tolist(), strict=True)):
            for concept in self._concepts_of(name):
                best.setdefault(concept, (-score, name))
        return best

    def _concepts_of(self, name: int) -> list[int]:
        return self._arrays.name_concept[self._arrays.name_start[name] : self._arrays.name_start[name + 1]].tolist()

    @cached_property
    def _postings(self) -> sparse.csr_matrix:
        """How often each name has each 3-gram: [3-grams, names] float64. In memory, unlike what `link_above` needs."""
        arrays = self._arrays
        entries = (arrays.vectors_count, arrays.vectors_gram, arrays.vectors_start)
        shape = (len(arrays.name_length), len(arrays.idf_squared))
        return sparse.csr_matrix(entries, shape=shape).T.tocsr().astype(np.float64)

    @cached_property
    def _vectorless(self) -> dict[str, list[int]]:
        """Names of which every 3-gram is rare, by their key: equality is the only way to find them.

        Names are numbered by mass, and theirs is 0: they come first.
        """
        found: dict[str, list[int]] = {}
        for name in range(self.manifest["counts"]["names_without_vector"]):
            found.setdefault(link_key(self._names[name].as_py()), []).append(name)
        return found


def _map(path: Path) -> np.ndarray:
    # A plain array over the mapped file: compiled code wants no subclass.
    return np.asarray(np.load(path, mmap_mode="r"))


def _read_strings(path: Path) -> pa.LargeStringArray:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except pa.ArrowInvalid as error:
        raise UserError(path, got=f"an unreadable file ({error})", expected="an Arrow file", mend=_MEND) from None
    return table.column("value").chunk(0)
