"""scispaCy's own approximate search, for results that can be compared with those of scispaCy pipelines.

Its graph (HNSW, in nmslib) finds the true best name for about 98% of mentions, two builds of it disagree, and it takes
hours to build for all of UMLS: `LinkIndex` is the better choice where no comparison is wanted. The files are those of a
scispaCy linker, so a published one can be loaded; its names get the concepts of the knowledge base.

    nmslib_index.bin              the graph
    tfidf_vectors_sparse.npz      the names' vectors, float16
    tfidf_vectorizer.joblib       scikit-learn's vectorizer; a pickle, see `ScispacyHnsw.load`
    concept_aliases.json          the names by row
    manifest.json                 only where this module built it
"""

from __future__ import annotations

import json
import os
import stat
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import joblib
import nmslib
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse
from scispacy.candidate_generation import CandidateGenerator, LinkerPaths
from sklearn.feature_extraction.text import TfidfVectorizer

from kebiolm.console import error_console
from kebiolm.errors import UserError
from kebiolm.files import (
    atomic_folder,
    describe_file,
    has_format,
    read_manifest,
    sha256_of_file,
    sha256_of_json,
    verify_file,
    write_json,
)
from preprocessing.linker.build import SCISPACY_MIN_DF, large_strings
from preprocessing.linker.index import LinkedConcepts
from preprocessing.linker.search import SCORE_DECIMALS

FORMAT, VERSION = "kebiolm-scispacy-linker", 1

# scispaCy's settings: `create_tfidf_ann_index` and the defaults of its EntityLinker.
GRAPH_SETTINGS = {"M": 100, "efConstruction": 2000, "post": 0}
NEIGHBOURS, EF_SEARCH = 30, 200

_GRAPH, _VECTORS = "nmslib_index.bin", "tfidf_vectors_sparse.npz"
_VECTORIZER, _ALIASES = "tfidf_vectorizer.joblib", "concept_aliases.json"
_FILES = (_GRAPH, _VECTORS, _VECTORIZER, _ALIASES)
_MENTIONS_AT_ONCE = 1000
_MEND = "give the folder of a scispaCy linker, or build one anew"


def build_scispacy_hnsw(
    names: Sequence[str] | pa.Array | pa.ChunkedArray, out: Path, *, min_df: int = SCISPACY_MIN_DF, threads: int = 1
) -> dict[str, Any]:
    """Build scispaCy's index of a knowledge base's names and write it to a new folder.

    One core needs some 10 minutes for the first 100,000 names and more for each further 100,000.

    Args:
        names: the names, in any order; repeated ones count once.
        out: folder to write; a former index is replaced.
        min_df: drop 3-grams that fewer names contain.
        threads: how many build the graph; with more of them two builds agree even less.

    Returns:
        The manifest.

    Raises:
        ValueError: every 3-gram is too rare.
    """
    aliases = np.array(sorted(pc.unique(large_strings(names)).to_pylist()), dtype=object)
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3), min_df=min_df, dtype=np.float32)
    vectors = vectorizer.fit_transform(aliases).tocsr()
    kept = np.flatnonzero(np.diff(vectors.indptr))  # nmslib crashes on vectors of zeros
    vectors, aliases = vectors[kept], aliases[kept].tolist()
    error_console.print(f"Building scispaCy's graph of {len(aliases)} names; this takes long")
    graph = _new_graph()
    graph.addDataPointBatch(vectors)
    graph.createIndex(GRAPH_SETTINGS | {"indexThreadQty": threads}, print_progress=error_console.is_terminal)

    with atomic_folder(out, overwrite=True, is_ours=lambda folder: has_format(folder, FORMAT)) as folder:
        graph.saveIndex(str(folder / _GRAPH))
        # What scipy.sparse.save_npz writes; SciPy 1.11 and later read float16 but refuse to make such a matrix.
        arrays = {"indices": vectors.indices, "indptr": vectors.indptr, "data": vectors.data.astype(np.float16)}
        np.savez_compressed(folder / _VECTORS, format=b"csr", shape=vectors.shape, **arrays)
        joblib.dump(vectorizer, folder / _VECTORIZER)
        (folder / _ALIASES).write_text(json.dumps(aliases), encoding="utf-8")
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "settings": GRAPH_SETTINGS | {"min_df": min_df, "threads": threads},
            "counts": {"names": len(aliases), "vocabulary": vectors.shape[1]},
            "files": {name: describe_file(folder / name) for name in _FILES},
        }
        write_json(folder / "manifest.json", manifest)
    return manifest


class ScispacyHnsw:
    """A scispaCy linker's index with the interface of `LinkIndex.link_above`; results are sorted by (score, CUI).

    Unlike `LinkIndex` it lies in the memory of each process.
    """

    def __init__(self, path: Path, generator: CandidateGenerator, concepts: pa.LargeStringArray) -> None:
        self.path, self._generator, self._concepts = path, generator, concepts
        self._number_of = {cui: number for number, cui in enumerate(concepts.to_pylist())}

    @classmethod
    def load(
        cls,
        path: Path,
        names: Sequence[str] | pa.Array | pa.ChunkedArray,
        cuis: Sequence[str] | pa.Array | pa.ChunkedArray,
        *,
        check_hash: bool = True,
    ) -> ScispacyHnsw:
        """Load a folder that `build_scispacy_hnsw` wrote, or that scispaCy published.

        The vectorizer is a pickle, and who can write a pickle can run any code here. So a folder must be named by the
        user, never fetched, and the vectorizer must belong to this user or to root and be writable by no one else.

        Args:
            path: the folder.
            names: [P] names of the knowledge base.
            cuis: [P] the concept of each. Names of the index that are not among `names` have no concept.
            check_hash: compare the files' SHA-256 too, where this module wrote the folder.

        Raises:
            UserError: a file is missing, broken, from other people, or does not belong to the others.
        """
        if has_format(path, FORMAT):
            manifest = read_manifest(path, FORMAT, VERSION, made_by="build_scispacy_hnsw")
            for name, recorded in manifest["files"].items():
                verify_file(path, name, recorded, mend=_MEND, check_hash=check_hash)
        for name in _FILES:
            if not (path / name).is_file():
                raise UserError(path / name, got="no such file", expected="a file of a scispaCy linker", mend=_MEND)
        _check_owner(path / _VECTORIZER)
        paths = LinkerPaths.from_directory(path)
        aliases = _read(path / _ALIASES, paths.get_concept_aliases)
        vectorizer = _read(path / _VECTORIZER, lambda: _as_of_today(paths.get_tfidf_vectorizer()))
        shape = _read(path / _VECTORS, lambda: sparse.load_npz(path / _VECTORS).shape)
        expected = (len(aliases), len(vectorizer.vocabulary_))
        if shape != expected:
            raise UserError(
                path / _VECTORS, got=f"vectors {shape}", expected=f"{expected} as by the others", mend=_MEND
            )
        graph = _read(path / _GRAPH, lambda: paths.get_ann_index(ef_search=EF_SEARCH))
        cuis = large_strings(cuis).combine_chunks()
        kb = SimpleNamespace(alias_to_cuis=_concepts_of_aliases(aliases, large_strings(names), cuis))
        generator = CandidateGenerator(_OneThread(graph), vectorizer, aliases, kb)
        return cls(path, generator, pc.unique(cuis).sort())

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the files and the concepts; the knowledge base has a fingerprint of its own."""
        hashes = {name: sha256_of_file(self.path / name) for name in _FILES}
        return sha256_of_json({"files": hashes, "neighbours": NEIGHBOURS, "ef_search": EF_SEARCH})

    @property
    def concepts(self) -> pa.LargeStringArray:
        """The CUIs, sorted; a concept's number is its place here."""
        return self._concepts

    def link_above(self, mentions: Sequence[str], threshold: float) -> LinkedConcepts:
        """The best concept that the search finds for each mention, where its score is strictly above the threshold.

        A concept's score is that of its nearest name among the 30 nearest; of equal scores the first CUI wins.

        Args:
            mentions: M texts, of any case and spacing.
            threshold: in [0, 1].
        """
        concepts, scores = np.full(len(mentions), -1, np.int32), np.zeros(len(mentions), np.float32)
        for start in range(0, len(mentions), _MENTIONS_AT_ONCE):
            batch = list(mentions[start : start + _MENTIONS_AT_ONCE])
            for row, candidates in enumerate(self._generator(batch, NEIGHBOURS), start):
                ranked = sorted((-_score(candidate), candidate.concept_id) for candidate in candidates)
                if ranked and -ranked[0][0] > threshold:
                    concepts[row], scores[row] = self._number_of[ranked[0][1]], -ranked[0][0]
        return LinkedConcepts(concept=concepts, score=scores)


class _OneThread:
    """A graph that searches in this thread only: a node's cores are shared out among processes, not threads."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph

    def knnQueryBatch(self, vectors: sparse.csr_matrix, k: int) -> Any:
        return self._graph.knnQueryBatch(vectors, k=k, num_threads=1)


def _new_graph() -> Any:
    return nmslib.init(method="hnsw", space="cosinesimil_sparse", data_type=nmslib.DataType.SPARSE_VECTOR)


def _score(candidate: Any) -> float:
    return min(round(max(candidate.similarities), SCORE_DECIMALS), 1.0)


def _check_owner(path: Path) -> None:
    described = path.stat()
    if described.st_uid not in (0, os.getuid()):
        got = f"a pickle of user {described.st_uid}"
    elif described.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        got = "a pickle that others may write to"
    else:
        return
    mend = "copy the folder if you trust it (`cp -r`, `chmod -R go-w`)"
    raise UserError(path, got=got, expected="one that only you or root can change, as loading it runs code", mend=mend)


def _read(path: Path, read: Callable[[], Any]) -> Any:
    try:
        with warnings.catch_warnings():
            # scikit-learn warns of pickles of other versions; what matters of them is checked here.
            warnings.filterwarnings("ignore", message="Trying to unpickle")
            return read()
    except Exception as error:  # each of the four readers, and any pickle, has errors of its own
        got = f"an unreadable file ({type(error).__name__}: {error})"
        raise UserError(path, got=got, expected="a file of a scispaCy linker", mend=_MEND) from None


def _as_of_today(stored: TfidfVectorizer) -> TfidfVectorizer:
    """A vectorizer of the installed scikit-learn; before version 1.5 the weights lay in a diagonal matrix."""
    diagonal = vars(stored._tfidf).get("_idf_diag")
    vectorizer = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(3, 3), dtype=np.float32, vocabulary=stored.vocabulary_
    )
    vectorizer.idf_ = np.asarray(stored.idf_ if diagonal is None else diagonal.diagonal(), dtype=np.float32)
    return vectorizer


def _concepts_of_aliases(
    aliases: list[str], names: pa.ChunkedArray, cuis: pa.LargeStringArray
) -> dict[str, tuple[str, ...]]:
    """For each name of the index its concepts in the knowledge base, sorted."""
    rows = pc.index_in(names, value_set=pa.array(aliases, pa.large_string()))
    known = rows.is_valid()
    found: dict[str, tuple[str, ...]] = dict.fromkeys(aliases, ())
    for row, cui in sorted(set(zip(rows.filter(known).to_pylist(), cuis.filter(known).to_pylist(), strict=True))):
        found[aliases[row]] += (cui,)
    return found
