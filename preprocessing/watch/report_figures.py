"""The figures of an annotation report, counted in one pass over the parts; memory follows the number of concepts.

Only the mentions are read, and a dozen documents with their texts at fixed places of the corpus: the same corpus always
gives the same report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kebiolm.console import progress
from kebiolm.data.knowledge_base import CONCEPTS_FILE, KnowledgeBase
from preprocessing.annotation.store import REJECT_SCHEMA, AnnotatedCorpus, part_name
from preprocessing.document import Document, Mention, Reject

EXAMPLES = 12
EXAMPLES_PER_REASON = 3
REASONS_SHOWN = 40
TOP_ENTITIES = 25

LONGEST_MENTION, MOST_MENTIONS = 100, 1000  # higher values are counted together
SCORE_BINS = 20
_GOOD_EXAMPLE = {"mentions": 3, "least_characters": 300, "most_characters": 3000}


@dataclass(frozen=True, kw_only=True)
class Concept:
    """A concept as it is shown: preferred name and names of semantic types; both empty where no table has it."""

    cui: str
    name: str = ""
    semantic_types: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ReportFigures:
    """What the report shows.

    Attributes:
        manifest: the annotated folder's.
        knowledge_base: the knowledge base's manifest.
        lengths: [101] number of linked mentions of each length in characters; the last: that long or longer.
        scores: [20] number of linked mentions in equal steps of the score from `score_from` to 1.
        score_from: lower end of the scores.
        score_ones: linked mentions of score 1: their text is a name of the concept, but for case and spacing.
        per_document: [1001] number of documents with each number of linked mentions; the last: as many or more.
        concepts_used: distinct concepts that were linked.
        unknown_concepts: of these, how many the knowledge base does not have.
        semantic_types: semantic type -> linked mentions; a concept of two types counts for both; most frequent first.
        top: the most frequent concepts with their mentions.
        examples: documents at equal distances in the corpus.
        example_concepts: CUI -> concept, of all mentions of the examples.
        rejects: reason -> its first few records.
        shards: manifest of the shards folder, None where none was given.
    """

    manifest: dict[str, Any]
    knowledge_base: dict[str, Any]
    lengths: np.ndarray
    scores: np.ndarray
    score_from: float
    score_ones: int
    per_document: np.ndarray
    concepts_used: int
    unknown_concepts: int
    semantic_types: dict[str, int]
    top: tuple[tuple[Concept, int], ...]
    examples: tuple[Document, ...]
    example_concepts: dict[str, Concept]
    rejects: dict[str, tuple[Reject, ...]]
    shards: dict[str, Any] | None = None


def collect_figures(
    corpus: AnnotatedCorpus, base: KnowledgeBase, shards: dict[str, Any] | None = None
) -> ReportFigures:
    """Count everything that the report shows.

    Args:
        corpus: the annotated documents.
        base: the knowledge base that they were linked to.
        shards: manifest of the shards that were made from them, if any.
    """
    settings = corpus.manifest.get("settings", {})
    tally = _Tally(score_from=float(settings.get("threshold", 0.0)))
    with progress("report", len(corpus.part_sizes), "parts") as advance:
        for number in range(len(corpus.part_sizes)):
            tally.add_part(corpus.path / f"{part_name(number)}.parquet")
            advance()
    examples = _pick_examples(corpus)
    top = sorted(tally.concepts.items(), key=lambda item: (-item[1], item[0]))[:TOP_ENTITIES]
    in_examples = {mention.cui for document in examples for mention in document.mentions}
    known, types = _count_types(base, tally.concepts)
    shown = _look_up(base, in_examples | {cui for cui, _ in top})
    return ReportFigures(
        manifest=corpus.manifest,
        knowledge_base=base.manifest,
        lengths=tally.lengths,
        scores=tally.scores,
        score_from=tally.score_from,
        score_ones=tally.score_ones,
        per_document=tally.per_document,
        concepts_used=len(tally.concepts),
        unknown_concepts=len(tally.concepts) - known,
        semantic_types=types,
        top=tuple((shown[cui], count) for cui, count in top),
        examples=tuple(examples),
        example_concepts={cui: shown[cui] for cui in sorted(in_examples)},
        rejects=_reject_examples(corpus),
        shards=shards,
    )


class _Tally:
    """Running counts over the mentions of all parts."""

    def __init__(self, *, score_from: float) -> None:
        self.score_from = score_from
        self.lengths = np.zeros(LONGEST_MENTION + 1, np.int64)
        self.scores = np.zeros(SCORE_BINS, np.int64)
        self.score_ones = 0
        self.per_document = np.zeros(MOST_MENTIONS + 1, np.int64)
        self.concepts: Counter[str] = Counter()

    def add_part(self, path: Path) -> None:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["mentions"]):
                mentions = batch.column(0)
                self.per_document += _counts_of(pc.list_value_length(mentions).to_numpy(), MOST_MENTIONS)
                starts, ends, cuis, scores = mentions.flatten().flatten()
                self.lengths += _counts_of(ends.to_numpy() - starts.to_numpy(), LONGEST_MENTION)
                self._add_scores(scores.to_numpy())
                for distinct in pc.value_counts(cuis).to_pylist():
                    self.concepts[distinct["values"]] += distinct["counts"]

    def _add_scores(self, scores: np.ndarray) -> None:
        step = (1 - self.score_from) / SCORE_BINS
        places = np.floor((scores.astype(np.float64) - self.score_from) / step).astype(np.int64)
        self.scores += np.bincount(np.clip(places, 0, SCORE_BINS - 1), minlength=SCORE_BINS)
        self.score_ones += int((scores == 1).sum())


def _counts_of(values: np.ndarray, most: int) -> np.ndarray:
    """[most + 1] how often each value from 0 occurs; the last counts everything from `most` on."""
    return np.bincount(np.clip(values, 0, most), minlength=most + 1)


def _count_types(base: KnowledgeBase, concepts: Mapping[str, int]) -> tuple[int, dict[str, int]]:
    """How many of the concepts the knowledge base has, and the mentions of each semantic type."""
    table = pq.read_table(base.path / CONCEPTS_FILE, columns=["cui", "semantic_type_names"])
    rows = pc.index_in(pa.array(list(concepts), pa.string()), value_set=table["cui"])
    is_known = pc.is_valid(rows).to_numpy(zero_copy_only=False)
    mentions = np.fromiter(concepts.values(), np.int64, len(concepts))[is_known]
    types = table["semantic_type_names"].take(rows.drop_null()).combine_chunks()
    repeated = np.repeat(mentions, pc.list_value_length(types).to_numpy())
    names = types.flatten().dictionary_encode()
    sums = np.zeros(len(names.dictionary), np.int64)
    np.add.at(sums, names.indices.to_numpy(), repeated)
    counted = zip(names.dictionary.to_pylist(), sums.tolist(), strict=True)
    return int(is_known.sum()), dict(sorted(counted, key=lambda item: (-item[1], item[0])))


def _look_up(base: KnowledgeBase, cuis: set[str]) -> dict[str, Concept]:
    """Name and types of some concepts."""
    columns = ["cui", "preferred_name", "semantic_type_names"]
    wanted = pc.field("cui").isin(pa.array(sorted(cuis), pa.string()))
    table = pq.read_table(base.path / CONCEPTS_FILE, columns=columns, filters=wanted)
    found = {
        cui: Concept(cui=cui, name=name, semantic_types=tuple(types))
        for cui, name, types in zip(*(table[column].to_pylist() for column in columns), strict=True)
    }
    return {cui: found.get(cui, Concept(cui=cui)) for cui in cuis}


def _pick_examples(corpus: AnnotatedCorpus) -> list[Document]:
    """Documents at equal distances; from each place on, the first of its row group that is worth reading."""
    starts = np.concatenate([[0], np.cumsum(corpus.part_sizes)])
    wanted = min(EXAMPLES, len(corpus))
    examples: dict[str, Document] = {}
    for place in ((2 * np.arange(wanted) + 1) * len(corpus) // max(2 * wanted, 1)).tolist():
        part = int(np.searchsorted(starts, place, side="right")) - 1
        document = _pick_from(corpus.path / f"{part_name(part)}.parquet", place - int(starts[part]))
        examples.setdefault(document.doc_id, document)
    return list(examples.values())


def _pick_from(path: Path, row: int) -> Document:
    with pq.ParquetFile(path) as file:
        group = 0
        while row >= file.metadata.row_group(group).num_rows:
            row -= file.metadata.row_group(group).num_rows
            group += 1
        table = file.read_row_group(group)
    lengths = pc.utf8_length(table["text"]).to_numpy()
    mentions = pc.list_value_length(table["mentions"]).to_numpy()
    is_good = (
        (mentions >= _GOOD_EXAMPLE["mentions"])
        & (lengths >= _GOOD_EXAMPLE["least_characters"])
        & (lengths <= _GOOD_EXAMPLE["most_characters"])
    )
    good = np.flatnonzero(is_good)
    # The next good one, else the one before it, else the document at the place itself.
    chosen = next(iter([*good[good >= row], *good[good < row][::-1], row]))
    (values,) = table.slice(int(chosen), 1).to_pylist()
    return Document(
        doc_id=values["doc_id"],
        text=values["text"],
        mentions=tuple(Mention(**mention) for mention in values["mentions"]),
    )


def _reject_examples(corpus: AnnotatedCorpus) -> dict[str, tuple[Reject, ...]]:
    """The first few records of each reason, of the most frequent reasons."""
    reasons = Counter(corpus.manifest.get("rejects_by_reason", {})).most_common(REASONS_SHOWN)
    wanted = {reason: min(count, EXAMPLES_PER_REASON) for reason, count in reasons}
    found: dict[str, list[Reject]] = {reason: [] for reason in wanted}
    for number in range(len(corpus.part_sizes)):
        if all(len(found[reason]) == count for reason, count in wanted.items()):
            break
        name = f"{part_name(number)}.rejects.parquet"
        if not corpus.manifest["files"][name]["rows"]:
            continue
        with pq.ParquetFile(corpus.path / name) as file:
            for batch in file.iter_batches(columns=REJECT_SCHEMA.names):
                for reason, kept in found.items():
                    rows = batch.filter(pc.equal(batch["reason"], reason))
                    kept += [Reject(**row) for row in rows.slice(0, wanted[reason] - len(kept)).to_pylist()]
    return {reason: tuple(kept) for reason, kept in found.items()}
